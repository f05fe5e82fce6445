"""A profile in words: pieces in groups, totals, the slowest."""

from __future__ import annotations

from dataclasses import replace

from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    UpdateCosts,
)
from bundlerun.launcher.planning.profile_table import groups_of, profile_text

NAMES = ("bn1", "layer1", "layer1.0.bn1", "layer1.0.relu", "layer1.1", "layer1.1.bn1", "fc")
COSTS = ModelCosts(
    samples=8,
    pieces=tuple(
        Piece(forward_s=0.001 * i, backward_s=0.002 * i, kept_bytes=10**6) for i in range(1, 9)
    ),
    boundaries=tuple(Boundary(name=n, forward_bytes=2, backward_bytes=2) for n in NAMES),
    input_bytes=5_000_000,
)


def test_pieces_are_grouped_by_the_modules_that_they_begin_in() -> None:
    found = [(group.name, group.first, group.end) for group in groups_of(COSTS)]
    assert found == [
        ("the input", 0, 1),
        ("bn1", 1, 2),
        ("layer1.0.bn1", 2, 4),
        ("layer1.0.relu", 4, 5),
        ("layer1.1.bn1", 5, 7),
        ("fc", 7, 8),
    ]


def test_many_pieces_are_grouped_by_larger_modules() -> None:
    names = [f"blocks.{block}.{part}" for block in range(12) for part in range(4)]
    costs = ModelCosts(
        samples=1,
        pieces=(Piece(),) * 49,
        boundaries=tuple(Boundary(name=n, forward_bytes=0, backward_bytes=0) for n in names),
    )
    assert [group.name for group in groups_of(costs)][1:] == [f"blocks.{i}" for i in range(12)]


def test_the_table_has_totals_and_the_slowest_pieces() -> None:
    key = ProfileKey(model="m", device="cpu, 1 thread", versions="1", precision="float32")
    profile = Profile(
        key=key, by_samples=(COSTS,), update=UpdateCosts(), cutter="graph", why="the model traces"
    )
    text = profile_text(profile, top=2)
    (total,) = [line for line in text.splitlines() if line.startswith("in all")]
    assert "36.00 ms" in total  # 1 + 2 + ... + 8
    assert "72.00 ms" in total
    assert "8.00 MB" in total
    assert "slowest pieces: fc 22.2%, layer1.1.bn1 19.4%" in text
    assert "cut by graph: the model traces" in text


def test_parameters_without_a_gradient_are_told_with_their_place() -> None:
    key = ProfileKey(model="m", device="cpu, 1 thread", versions="1", precision="float32")
    pieces = [replace(piece, num_unused=2 * (i == 4)) for i, piece in enumerate(COSTS.pieces)]
    for costs, count in ((COSTS, 0), (replace(COSTS, pieces=tuple(pieces)), 1)):
        profile = Profile(key=key, by_samples=(costs,), update=UpdateCosts())
        lines = profile_text(profile, top=2).splitlines()
        found = [line for line in lines if line.startswith("without a gradient: ")]
        assert len(found) == count
        assert all("2 trained parameters, among those from layer1.0.relu;" in x for x in found)
