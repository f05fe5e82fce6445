"""What becomes of a run when a node is lost, in words."""

from __future__ import annotations

from collections.abc import Iterable

from bundlerun.launcher.layout.survival.losses import Loss

_MOST_NODES = 6
"""Numbers of nodes that a line has at most."""


def loss_lines(found: Iterable[Loss], *, has_snapshots: bool) -> list[str]:
    """A line for nodes that are alike.

    Args:
        found: what the loss of each does.
        has_snapshots: whether there are any: else the checkpoint is all there is.
    """
    return [f"{_who(one)}: {_then(one)}; {_state(one, has_snapshots)}" for one in found]


def _who(one: Loss) -> str:
    shown = ", ".join(map(str, one.nodes[:_MOST_NODES]))
    more = f" or {len(one.nodes) - _MOST_NODES:,} more" if len(one.nodes) > _MOST_NODES else ""
    several = "any of " if len(one.nodes) > 1 else ""
    return f"{several}node{'s' if several else ''} {shown}{more}"


def _then(one: Loss) -> str:
    if one.shape is None:
        return "the others wait for a node"
    told = f", at {one.throughput:.2f} of the throughput as foreseen" if one.throughput else ""
    return f"goes on as shape {one.shape} on {one.used:,} devices, of {one.was_used:,} before{told}"


def _state(one: Loss, has_snapshots: bool) -> str:
    if not has_snapshots:
        return "from the newest checkpoint"
    if one.lost_stages:
        several = "s" if len(one.lost_stages) > 1 else ""
        stages = ", ".join(map(str, one.lost_stages))
        return f"from the newest checkpoint, as nobody else has stage{several} {stages}"
    return "no finished step is lost"


def loss_document(found: Iterable[Loss]) -> list[dict[str, object]]:
    """The same as plain values."""
    return [
        {
            "nodes": list(one.nodes),
            "shape": None if one.shape is None else str(one.shape),
            "devices_used": one.used,
            "devices_used_before": one.was_used,
            "lost_stages": list(one.lost_stages),
            "throughput": one.throughput or None,
        }
        for one in found
    ]
