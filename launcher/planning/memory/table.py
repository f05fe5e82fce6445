"""The memory of a plan as a person and a program read it.

of each rank, MiB            stage 0  stage 1
  parameters                    12.5     98.1
  ...
  in all                       410.0    511.7
node: 2 ranks, 921.7 MiB of 24,105.6; of these /dev/shm 150.2 of 24,105.6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from bundlerun.launcher.planning.candidate import Candidate, RankMemory
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.memory.fits import Remedies, Room, Shortfall, node_memory

_MIB = 1 << 20
_GIB = 1 << 30
_PARTS = {
    "parameters": "parameters",
    "buffers": "buffers",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations in flight",
    "working": "beside, in one pass",
    "update": "or, in the optimizer's step",
    "held": "free, and kept by the allocator",
    "buckets": "sums of gradients",
    "wires": "messages",
    "program": "program",
    "snapshot": "snapshot, in /dev/shm",
    "loader": "loading processes",
    "start": "or, at the start, the whole model",
    "initial": "and weights that it begins with",
    "check": "and its comparison with the stages",
}
_MOST_STAGES = 12
"""Columns of the table; `--json` has all stages."""


def memory_lines(ranks: Sequence[RankMemory], candidate: Candidate, cluster: Cluster) -> list[str]:
    """The table, a line per part, and a line per kind of node."""
    shown = list(ranks[:_MOST_STAGES])
    more = len(ranks) - len(shown)
    head = [f"stage {number}" for number in range(len(shown))]
    rows: list[tuple[str, list[int]]] = [
        (words, [getattr(rank, name) for rank in shown]) for name, words in _PARTS.items()
    ]
    rows = [row for row in rows if any(row[1])]
    if not any(kind.host.cores for kind in cluster.kinds):
        rows.append(("on the device", [rank.device for rank in shown]))
    rows.append(("in all", [rank.total for rank in shown]))
    width = max(len(words) for words, _ in rows)
    lines = [f"{'of each rank, MiB':{width + 2}}" + "".join(f"{title:>12}" for title in head)]
    lines += [
        f"  {words:{width}}" + "".join(f"{value / _MIB:>12,.1f}" for value in values)
        for words, values in rows
    ]
    if more:
        lines.append(f"  ... {more} more stages")
    for node in node_memory(ranks, candidate, cluster):
        name = f"node {node.kind.name}" if len(cluster.kinds) > 1 else "a node"
        text = f"{name}: {sum(node.ranks)} ranks, {_of(node.host, node.kind.host_bytes)}"
        if node.shm:
            text += f"; of these in /dev/shm {_of(node.shm, node.kind.shm_bytes)}"
        lines.append(text)
    return lines


def _of(needed: int, there: int) -> str:
    return f"{needed / _MIB:,.1f} MiB" + (f" of {there / _MIB:,.1f}" if there else "")


def shortfall_line(short: Shortfall, remedies: Remedies | None = None) -> str:
    """What does not fit, by how much, and what would."""
    size = f"{short.over:,} bytes over the {_size(short.there)}"
    needed = _size(short.needed)
    match short.room:
        case Room.DEVICE:
            text = f"stage {short.stage} needs {needed} of a device, {size} that it has"
        case Room.HOST:
            text = (
                f"the ranks of a node need {needed} of its memory, {size} that it has, most of it "
                f"stage {short.stage}"
            )
        case Room.SHM:
            text = (
                f"the snapshots of a node need {needed} of /dev/shm, {size} that it has, most of "
                f"it stage {short.stage}"
            )
    return f"{text}; {_what_would(short, remedies)}"


def _size(num_bytes: int) -> str:
    if num_bytes < _GIB:
        return f"{num_bytes / _MIB:.1f} MiB"
    return f"{num_bytes / _GIB:.2f} GiB"


def _what_would(short: Shortfall, remedies: Remedies | None) -> str:
    if remedies is not None and remedies.words:
        *most, last = remedies.words
        return f"{', '.join(most)} or {last} would fit" if most else f"{last} would fit"
    if short.room is Room.SHM:
        return "--snapshot off, or another --snapshot-dir, would do without"
    return "no smaller micro-batch, recomputation nor number of stages here would fit"


def memory_document(
    ranks: Sequence[RankMemory],
    candidate: Candidate,
    cluster: Cluster,
    shorts: Sequence[Shortfall] = (),
    remedies: Remedies | None = None,
) -> dict[str, object]:
    """The same as plain values, bytes."""
    return {
        "ranks": [
            {"stage": stage, **asdict(rank), "device": rank.device, "total": rank.total}
            for stage, rank in enumerate(ranks)
        ],
        "nodes": [
            {
                "kind": node.kind.name,
                "ranks_by_stage": list(node.ranks),
                "needed": node.host,
                "there": node.kind.host_bytes,
                "shm": node.shm,
                "shm_there": node.kind.shm_bytes,
                "device_there": node.kind.device_bytes,
            }
            for node in node_memory(ranks, candidate, cluster)
        ],
        "too_little": [
            {
                "room": short.room.name.lower(),
                "stage": short.stage,
                "needed": short.needed,
                "there": short.there,
                "over": short.over,
                "text": shortfall_line(short, remedies),
            }
            for short in shorts
        ],
        "would_fit": [] if remedies is None else remedies.words,
    }
