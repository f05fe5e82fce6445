"""A step waits for its device no more than twice, and asks little of it beyond the model's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from tests.standin import nets
from tests.standin.count import CASES, LENGTHS, Case, config_of, counted, extra

MODEL = f"{nets.__file__}:normed"
MOST_WAITS = 2
MOST_PER_MICROBATCH, MOST_PER_STEP = 12, 30


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_step_waits_little_and_asks_little(case: Case, tmp_path: Path) -> None:
    found = extra(MODEL, case, tmp_path)
    assert found.num_waits <= MOST_WAITS, found.waits
    # Each batch norm of a plain loop counts its batches; that is not to hide what is ours.
    assert found.per_microbatch + nets.NUM_LAYERS <= MOST_PER_MICROBATCH, found.at_microbatch
    assert found.per_step <= MOST_PER_STEP, found.at_step
    assert found.at_microbatch.total() > nets.NUM_LAYERS


def test_a_hidden_wait_is_counted(tmp_path: Path) -> None:
    def plant() -> None:
        apply = StatisticsPool.apply

        def waiting(self: StatisticsPool, counts: list[float]) -> None:
            apply(self, counts)
            for module in self._layers:
                float(module.running_mean[0])

        StatisticsPool.apply = waiting  # type: ignore[method-assign]

    config = config_of(MODEL, CASES[0], LENGTHS[0], tmp_path)
    waits = counted(config, 1, tmp_path, plant)[0].waits
    assert waits.total() >= nets.NUM_LAYERS
    assert any("test_counts.py" in place for place in waits)
