"""Which stages are lost with one machine, though several nodes have them: pure.

Two agents of one machine are two nodes: each outlives the other, and neither the machine.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OneMachine:
    """What one machine alone has in memory.

    Args:
        nodes: those on it that have it, ascending.
        stages: ascending.
    """

    nodes: tuple[int, ...]
    stages: tuple[int, ...]


def on_one_machine(
    holders: Mapping[int, Collection[int]], machines: Sequence[str]
) -> list[OneMachine]:
    """Stages that several nodes have, all of them on one machine, by machine.

    Args:
        holders: per stage the nodes that have it in memory.
        machines: of each node, or none; empty where it is not known.
    """
    found: dict[str, tuple[set[int], list[int]]] = {}
    for stage, nodes in sorted(holders.items()):
        where = {machines[node] if machines else "" for node in nodes}
        if len(nodes) > 1 and len(where) == 1 and "" not in where:
            there, stages = found.setdefault(where.pop(), (set(), []))
            there.update(nodes)
            stages.append(stage)
    return [
        OneMachine(nodes=tuple(sorted(nodes)), stages=tuple(stages))
        for nodes, stages in found.values()
    ]


def one_machine_text(found: Sequence[OneMachine], names: Sequence[str]) -> str:
    """That in a line; `names` are those of the nodes."""
    parts = [
        f"stage{'s' if len(one.stages) > 1 else ''} {', '.join(map(str, one.stages))} "
        f"(nodes {', '.join(names[node] for node in one.nodes)})"
        for one in found
    ]
    return (
        f"one machine alone has {'; another one '.join(parts)} in memory: if it is lost, a restart "
        "continues from the newest checkpoint"
    )
