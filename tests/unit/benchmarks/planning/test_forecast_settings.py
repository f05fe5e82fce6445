"""What the benchmark of forecasts foresees and measures."""

from __future__ import annotations

from benchmarks.planning.settings import Model, cases


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


def test_a_model_that_sleeps_is_profiled_block_by_block() -> None:
    small = Model(blocks=2, forward_ms=2, weight_kb=8, pass_kb=4)
    costs = small.measured(2)
    assert [piece.trained_bytes for piece in costs.pieces] == [8_004] * 4
    assert [piece.longest_bytes for piece in costs.pieces] == [8_000] * 4
    # All have a gradient in each pass: one without would hold back the sums of a step.
    assert not any(piece.num_unused for piece in costs.pieces)
    assert {bound.forward_bytes for bound in costs.boundaries} == {4_000}
    # A sleep is never too short. The first block has nothing to pass back.
    assert sum(piece.forward_s for piece in costs.pieces) >= 4 * 0.002
    assert sum(piece.backward_s for piece in costs.pieces) >= 4 * 0.004
    assert costs.pieces[0].weight_s == costs.pieces[0].backward_s
