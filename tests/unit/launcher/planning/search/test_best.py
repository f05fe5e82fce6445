"""The search against all plans there are, on small cases at random; `make plans` has 500."""

from __future__ import annotations

import pytest

from tests.sweep_plans import case_of
from tests.unit.launcher.planning.search.toy import toy_of


@pytest.mark.parametrize("seed", range(24))
def test_the_best_plan_is_found(seed: int) -> None:
    toy = toy_of(seed, most_pieces=6, most_devices=4, most_plans=80)
    assert case_of(toy).faults() == []
