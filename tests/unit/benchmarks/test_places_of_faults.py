"""The places where faults are injected are functions that there are."""

from __future__ import annotations

import pytest

from benchmarks.faults.places import AGENT_PLACES, RANK_PLACES, Spot, _owner


@pytest.mark.parametrize("spot", [*RANK_PLACES.values(), *AGENT_PLACES.values()], ids=str)
def test_every_place_is_a_function(spot: Spot) -> None:
    assert callable(getattr(_owner(spot.owner), spot.function))
