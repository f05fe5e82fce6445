"""Models and clusters that tests plan for."""

from __future__ import annotations

from collections.abc import Sequence

from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    SharedParameters,
    UpdateCosts,
)

GBIT = 1e9 / 8
MB = 10**6


def profile_of(
    forwards: Sequence[float],
    *,
    trained_bytes: int = 0,
    message_bytes: int = 0,
    update: UpdateCosts | None = None,
    shared: tuple[SharedParameters, ...] = (),
) -> Profile:
    """A backward takes twice the forward, half of it for the weights; micro-batches of 8."""
    pieces = tuple(
        Piece(forward_s=f, backward_s=2 * f, weight_s=f, trained_bytes=trained_bytes)
        for f in forwards
    )
    bounds = tuple(
        Boundary(name=f"b{i}", forward_bytes=message_bytes, backward_bytes=message_bytes)
        for i in range(len(forwards) - 1)
    )
    costs = ModelCosts(samples=8, pieces=pieces, boundaries=bounds, shared=shared)
    key = ProfileKey(model="m", device="cpu", versions="1", precision="float32")
    return Profile(key=key, by_samples=(costs,), update=update or UpdateCosts())


def nodes(
    count: int,
    devices: int,
    *,
    bytes_per_s: float = float("inf"),
    latency_s: float = 0.0,
    speed: float = 1.0,
    host: Host | None = None,
) -> Cluster:
    """Nodes that are alike."""
    kind = NodeKind(name="a", count=count, devices=devices, speed=speed, host=host or Host())
    return Cluster(kinds=(kind,), between=Link(bytes_per_s=bytes_per_s, latency_s=latency_s))
