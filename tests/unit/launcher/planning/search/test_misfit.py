from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.forecast import foresee
from bundlerun.launcher.planning.memory.ranks import rank_memory
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    UpdateCosts,
)
from bundlerun.launcher.planning.search.best import Search, best_plans
from bundlerun.launcher.planning.search.misfit import lump_of


def profile(*forwards: float) -> Profile:
    pieces = tuple(
        Piece(
            forward_s=f,
            backward_s=2 * f,
            weight_s=f,
            kept_bytes=10**9,
            parameter_bytes=10**9,
            trained_bytes=10**9,
        )
        for f in forwards
    )
    bounds = tuple(
        Boundary(name=f"layer{n}", forward_bytes=10**6, backward_bytes=10**6)
        for n in range(1, len(pieces))
    )
    return Profile(
        key=ProfileKey(model="m", device="d", versions="1", precision="float32"),
        by_samples=(ModelCosts(samples=8, pieces=pieces, boundaries=bounds),),
        update=UpdateCosts(state_share=1.0),
        program_bytes=1,
    )


def search(costs: Profile, device_gb: float, request: Request) -> Search:
    kind = NodeKind(name="a", count=1, devices=4, device_bytes=round(device_gb * 1e9))
    cluster = Cluster(kinds=(kind,), between=Link(bytes_per_s=1e9))
    memory = partial(rank_memory, costs, cluster=cluster, request=request)
    return best_plans(
        costs,
        cluster,
        request,
        foresee=lambda plan: foresee(costs, plan, cluster, request),
        memory=memory,
    )


SMALL = Request(batch_size=64, samples=8, has_snapshot=False)


def test_what_does_not_fit_is_said_with_what_would() -> None:
    costs = profile(1, 1, 1, 1)
    asked = replace(SMALL, shape=Shape((1, 1)), recompute=frozenset())
    with pytest.raises(ConfigError) as caught:
        search(costs, 9.0, asked)
    text = str(caught.value)
    assert "--shape 1,1" in text
    assert "stage 0 needs 10 GB, 1" in text
    assert "more than a device of node kind 'a' has" in text
    assert "--microbatch-size" in text
    assert "--recompute 0" in text
    assert "--shape 1,1,1" in text
    # Each of them does.
    assert search(costs, 9.0, replace(asked, recompute=frozenset({0, 1}))).plans
    assert search(costs, 9.0, replace(asked, samples=4)).plans
    assert search(costs, 9.0, replace(asked, shape=None)).plans


def test_nothing_would_fit_a_model_that_is_too_large() -> None:
    with pytest.raises(ConfigError, match="devices with more memory, or a smaller model"):
        search(profile(1, 1), 0.5, SMALL)


def test_stages_that_do_not_fit_otherwise_compute_again() -> None:
    asked = replace(SMALL, shape=Shape((1, 1)), schedule="1f1b")
    best = search(profile(1, 1, 1, 1), 9.0, asked).plans[0].candidate
    assert best.recompute == frozenset({0})


def test_more_stages_than_pieces_are_refused() -> None:
    with pytest.raises(ConfigError, match="a model of 2 pieces has --shape 1,1,1"):
        search(profile(1, 1), 100.0, replace(SMALL, shape=Shape((1, 1, 1))))


def test_a_piece_that_no_cut_balances_has_a_name() -> None:
    lump = search(profile(1, 9, 2), 100.0, SMALL).lump
    assert lump is not None
    assert (lump.piece, lump.after, lump.before) == (1, "layer1", "layer2")
    assert str(lump).startswith("the piece from layer1 to layer2 has 75% of the model's work")
    assert lump_of(profile(1, 1, 1).by_samples[0]) is None
    assert lump_of(profile(1).by_samples[0]) is None
    first = lump_of(profile(5, 1).by_samples[0])
    assert str(first).startswith("the piece to layer1 has 83%")
