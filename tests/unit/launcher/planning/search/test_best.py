"""The search against all plans there are, on small cases at random."""

from __future__ import annotations

from math import inf

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.planning.search.best import best_plans
from tests.unit.launcher.planning.search.toy import toy_of


@pytest.mark.parametrize("seed", range(12))
def test_the_best_plan_is_found(seed: int) -> None:
    toy = toy_of(seed, most_pieces=5, most_devices=3)
    least, _ = toy.best_by_force()
    try:
        found = best_plans(
            toy.profile, toy.cluster, toy.request, foresee=toy.foresee, memory=toy.memory
        )
    except ConfigError:
        assert least == inf
        return
    best = found.plans[0].forecast.step_s
    assert found.bound_s <= least * (1 + 1e-9)
    assert least <= best * (1 + 1e-9)
    assert best <= least * (1 + (1e-9 if found.is_optimal else 0.02))
