"""What differs between rendezvous backends."""

from __future__ import annotations

import pytest

from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.options.backend import BUNDLE, NO_LIMIT, Keeps, backend_of


@pytest.mark.parametrize(
    ("name", "keeps", "takes_over", "has_fixed_nodes", "restarts"),
    [
        ("bundle", Keeps.COORDINATOR, True, False, NO_LIMIT),
        ("c10d", Keeps.STORE, False, False, 0),
        ("static", Keeps.STORE, False, True, 0),
        ("etcd-v2", None, False, False, 0),
    ],
)
def test_a_backend_says_what_it_can_do(
    name: str, keeps: Keeps | None, takes_over: bool, has_fixed_nodes: bool, restarts: int
) -> None:
    found = backend_of(name)
    assert (found.name, found.keeps, found.takes_over) == (name, keeps, takes_over)
    assert (found.has_fixed_nodes, found.default_restarts) == (has_fixed_nodes, restarts)
    launch = LaunchConfig(rdzv_backend=name)
    assert (launch.backend.name, launch.num_restarts) == (name, restarts)


@pytest.mark.parametrize(
    ("name", "told"),
    [("bundle", {}), ("c10d", {"is_host": True}), ("static", {"rank": 2}), ("etcd-v2", {})],
)
def test_torchs_backends_are_told_what_they_cannot_see(name: str, told: dict[str, object]) -> None:
    assert backend_of(name).settings(node_rank=2, keeps_endpoint=True) == told


def test_who_keeps_the_first_endpoint_is_the_backends_or_the_users_word() -> None:
    static = backend_of("static")
    assert [static.keeps_first(rank, {"is_host": "no"}) for rank in (0, 1)] == [True, False]
    assert [BUNDLE.keeps_first(0, {"is_host": text}) for text in ("Yes", "0")] == [True, False]
    assert BUNDLE.keeps_first(0, {}) is None
