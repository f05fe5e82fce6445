"""Which step to continue from, and who sends what to whom: pure, from what each node has.

A node has pieces: named tensors of one stage at one step. All names of all stages at one step,
taken in one round, are a state. The newest one that is whole, spread over whatever nodes, counts.

    node      has               needs     gets
    0         all of stage 0    0         nothing
    1         all of stage 1    0, 1      stage 0 from node 0
    2         nothing           1         one half of stage 1 from node 1
    3         all of stage 1    1

A node that has got its part may hand it on, so new nodes are served as in a tree.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.piece import Label, SnapshotId, Spec, split_by_bytes

_MOST_SOURCES = 4
"""Nodes that one node gets the tensors of one stage from; each takes a connection."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one node has of one stage."""

    label: Label
    specs: Mapping[str, Spec]


Inventory = Sequence[Sequence[Piece]]
"""The pieces of each node, by node."""


class Transfer(NamedTuple):
    """Tensors of one stage that one node sends to another."""

    source: int
    target: int
    stage: int
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """One whole state, wherever its tensors are.

    Args:
        id: which one it is.
        progress: how far the run had come.
        specs: of all its tensors.
        labels: of a piece of each stage.
        holders: the nodes that have a tensor, ascending.
    """

    id: SnapshotId
    progress: Progress
    specs: Mapping[str, Spec]
    labels: Mapping[int, Label]
    stage_of: Mapping[str, int]
    holders: Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """What to continue from and what has to travel for it, in the order in which it does."""

    state: State
    transfers: tuple[Transfer, ...]


def newest_state(inventory: Inventory) -> State | None:
    """The newest state of which every tensor is there; None without one."""
    found: defaultdict[SnapshotId, list[tuple[int, Piece]]] = defaultdict(list)
    for node, pieces in enumerate(inventory):
        for piece in pieces:
            found[piece.label.id].append((node, piece))
    # By step, then by round: a later round did the step again after a restart.
    for which in sorted(found, reverse=True):
        state = _whole(found[which])
        if state is not None:
            return state
    return None


def _whole(pieces: Sequence[tuple[int, Piece]]) -> State | None:
    """The state that these pieces of one step and round make up, if nothing is missing."""
    labels: dict[int, Label] = {}
    stage_of: dict[str, int] = {}
    specs: dict[str, Spec] = {}
    holders: defaultdict[str, set[int]] = defaultdict(set)
    for node, piece in pieces:
        labels[piece.label.stage] = piece.label
        specs.update(piece.specs)
        for name in piece.specs:
            stage_of[name] = piece.label.stage
            holders[name].add(node)
    # Whole: a piece of each stage, and of each stage as many tensors as the label says it has. The
    # replicas of a stage share its tensors out, so no single piece has them all.
    counts = dict.fromkeys(labels, 0)
    for stage in stage_of.values():
        counts[stage] += 1
    first = pieces[0][1].label
    is_whole = sorted(labels) == list(range(first.num_stages)) and all(
        count == labels[stage].num_names for stage, count in counts.items()
    )
    if not is_whole:
        return None
    return State(
        id=first.id,
        progress=labels[first.num_stages - 1].progress,  # it alone knows the step's result
        specs=specs,
        labels=labels,
        stage_of=stage_of,
        holders={name: tuple(sorted(nodes)) for name, nodes in holders.items()},
    )


def plan_restore(
    inventory: Inventory,
    checkpoint_step: int,
    topology: Topology,
    needs: Sequence[Collection[str]],
) -> RestorePlan | None:
    """The newest whole state and how its tensors come to where they are needed.

    Args:
        inventory: what each node has.
        checkpoint_step: of the newest checkpoint; -1 without one.
        topology: of the round that begins.
        needs: per stage of that round, the names that its ranks load.

    Returns:
        None where no state is newer than the checkpoint.
    """
    state = newest_state(inventory)
    if state is None or state.id.step <= checkpoint_step:
        return None
    return RestorePlan(state=state, transfers=tuple(_transfers(state, topology, needs)))


def _transfers(
    state: State, topology: Topology, needs: Sequence[Collection[str]]
) -> Iterator[Transfer]:
    # [1] What each node needs: the stages that its ranks have.
    wanted: dict[int, set[str]] = {}
    for group in topology.sync_groups:
        wanted.setdefault(group.node, set()).update(needs[group.stage])
    # [2] What it lacks, in blocks that the same nodes have.
    holders = {name: list(nodes) for name, nodes in state.holders.items()}
    busy = [0] * topology.num_nodes
    for target, names in sorted(wanted.items()):
        missing = sorted(name for name in names if target not in state.holders[name])
        blocks: defaultdict[tuple[int, tuple[int, ...]], list[str]] = defaultdict(list)
        for name in missing:
            blocks[state.stage_of[name], tuple(holders[name])].append(name)
        for (stage, sources), block in sorted(blocks.items()):
            yield from _from_least_busy(state, target, stage, sources, block, busy)
        # A node that has received a tensor may pass it on to the next one, so the first holder does
        # not send to all.
        for name in missing:
            holders[name].append(target)


def _from_least_busy(
    state: State,
    target: int,
    stage: int,
    sources: Sequence[int],
    names: Sequence[str],
    busy: list[int],
) -> Iterator[Transfer]:
    """Shares `names` out to a few of the nodes that have them; counts the bytes as work of both."""
    sizes = {name: state.specs[name].num_bytes for name in names}
    chosen = heapq.nsmallest(_MOST_SOURCES, sources, key=lambda node: (busy[node], node))
    for source, part in zip(chosen, split_by_bytes(sizes, len(chosen)), strict=True):
        if part:
            num_bytes = sum(sizes[name] for name in part)
            busy[source] += num_bytes
            busy[target] += num_bytes
            yield Transfer(source, target, stage, tuple(part))
