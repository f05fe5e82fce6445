"""What the benchmark of forecasts foresees and measures."""

from __future__ import annotations

from benchmarks.planning.settings import LARGE, cases


def test_settings_are_of_several_shapes_schedules_and_links() -> None:
    found = list(cases())
    assert len({case.name for case in found}) == 16
    for values, least in (
        ({case.shape for case in found}, 3),
        ({case.schedule for case in found}, 4),
        ({case.sync for case in found}, 3),
        ({case.mbit_per_s for case in found}, 4),
        ({case.model for case in found}, 3),
    ):
        assert len(values) >= least


def test_a_model_that_sleeps_is_known_without_a_profile() -> None:
    (costs,) = LARGE.profile(2, 0.0).by_samples
    assert sum(piece.trained_bytes for piece in costs.pieces) == 2 * 2 * 8_000_000
    assert sum(piece.backward_s for piece in costs.pieces) == 2 * 2 * 0.04
