"""Parameters that several stages use train as in the unsplit model, whatever the layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.step import StepResult, StepWork
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.tied_model import CUTS
from tests.ranks.training.test_parity import CONFIG, assert_close, losses_of, run_state

NUM_STEPS = 5
TIED = replace(
    CONFIG,
    model=f"{Path(__file__).parents[1] / 'tied_model.py'}:build",
    lr=0.1,
    weight_decay=0.1,
    clip_norm=0.02,  # less than the norm of any step
)


class Case(NamedTuple):
    """One way to train it."""

    shape: tuple[int, ...]
    nodes: tuple[int, ...]
    changes: dict[str, Any] = {}  # noqa: RUF012 (read only)
    chunks: int = 1


CASES = [
    Case((1,), (2,)),
    Case((1, 1), (2,), {"sync": "sharded"}),
    Case((1, 1), (1, 1), {"sync": "auto", "recompute": "0,1"}),
    Case((1, 1), (4, 2), {"sync": "sharded", "schedule": "gpipe"}),
    Case((2, 1), (3, 3), {"sync": "flat", "schedule": "zero-bubble"}),
    Case((1, 1, 1), (3, 3), {"schedule": "zero-bubble"}),
    Case((1, 1, 1), (2, 4, 3), {"share": "measured"}),
    Case((1, 2, 1), (4, 2), {"sync": "sharded"}),
    Case((1, 1, 1), (3, 3), {"cutter": "replay"}),
    Case((1, 1), (2,), {"cutter": "replay", "schedule": "interleaved"}, chunks=2),
    # `gain` and `kept` are in two chunks of one stage.
    Case((1, 1), (2, 2), {"schedule": "interleaved"}, chunks=2),
]


def tied(case: Case) -> TrainConfig:
    """The run of a case."""
    cut = CUTS[len(case.shape) * case.chunks if len(case.shape) > 1 else 1]
    return replace(TIED, shape=Shape(case.shape), cut=cut, chunks=case.chunks, **case.changes)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(TIED, NUM_STEPS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_layout_trains_like_the_unsplit_model(
    case: Case, reference: Reference, tmp_path: Path
) -> None:
    state: dict[str, Tensor] = run_state(tied(case), case.nodes, tmp_path)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)


def test_what_is_used_twice_is_bit_equal_to_one_process_after_one_microbatch(
    tmp_path: Path,
) -> None:
    # Clipping adds squares up in the order of stages; three addends have an order, too.
    one = replace(TIED, precision="float32", microbatch_size=24, clip_norm=0.0, max_steps=1)
    wanted = train_unsplit(one, 1)
    state = run_state(replace(one, shape=Shape((1, 1)), cut=CUTS[2]), (2,), tmp_path)
    names = [name for name in wanted.state if not name.startswith("mix.")]
    assert all(torch.equal(state[name], wanted.state[name]) for name in names)


@pytest.mark.parametrize(("form", "apart"), [("bfloat16", 1e-3), ("int8", 3e-3), ("int4", 5e-2)])
def test_what_is_rounded_between_nodes_leaves_all_copies_equal(
    form: str, apart: float, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"precision": "float32", "exchange_dtype": form}
    # Each step verifies that the copies are bit-equal.
    run_state(tied(Case((2, 1), (3, 3, 3), changes)), (3, 3, 3), tmp_path)
    wanted = train_unsplit(replace(TIED, precision="float32"), NUM_STEPS).losses
    assert losses_of(tmp_path) == pytest.approx(wanted, rel=apart)


def ended(config: TrainConfig, nodes: tuple[int, ...], folder: Path, tamper: Any) -> dict[int, str]:
    """How the ranks of a run end in which one step is tampered with."""
    config = replace(config, run_dir=str(folder / "run"), timeout_s=10)

    def main(env: RankEnv, store: Store) -> None:
        from bundlerun.workers.trainer import Trainer

        honest = Trainer.step

        def tampered(self: Trainer, work: StepWork, *rest: Any) -> StepResult:
            tamper(self, work, env.rank)
            return honest(self, work, *rest)

        Trainer.step = tampered  # type: ignore[method-assign] # in this rank's process only
        train(config, env, store)

    return outcomes(nodes, main, folder, 60)


@pytest.mark.parametrize("verify", [False, True])
def test_copies_that_differ_end_the_run_with_the_name(verify: bool, tmp_path: Path) -> None:
    config = replace(tied(Case((1, 1), (2, 2))), verify_replicas=verify)

    def tamper(trainer: Any, work: StepWork, rank: int) -> None:
        weight = trainer.stage.decode.weight.data

        def differ(*_: object) -> None:
            weight[3, 5] += 1e-12

        if work.step == 0 and rank % 2:  # alike on all replicas of stage 1
            trainer.optimizer.register_step_post_hook(differ)

    found = ended(config, (2, 2), tmp_path, tamper)
    assert len(found) == 4
    for text in found.values():
        assert "the copies of what stages 0 and 1 share differ " in text
        assert f"share differ {'after step 0' if verify else 'before step 1'}" in text
        assert "'embed.weight'" in text


LIMITED = """
from torch import nn


class Look(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 12, max_norm=0.5)

    def forward(self, x):
        return self.table((x.flatten(1) > 0).long()).mean(1)


def build(num_outputs):
    first, head = Look(), nn.Sequential(nn.Linear(12, 2), nn.Linear(2, num_outputs))
    head[0].weight = first.table.weight
    return [first, head]
"""


def test_a_forward_that_writes_a_copy_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(LIMITED)
    config = replace(TIED, shape=Shape((1, 1)), model=f"{path}:build", timeout_s=10.0)
    found = ended(config, (2,), tmp_path, lambda *_: None)
    assert "ConfigError: the forward of the model writes '0.table.weight', of which" in found[0]
