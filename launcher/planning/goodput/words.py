"""Goodput as a table for people, and as plain values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from bundlerun.launcher.options.spans import span_text
from bundlerun.launcher.planning.goodput.estimate import Goodput
from bundlerun.launcher.planning.goodput.fleet import Absence
from bundlerun.launcher.planning.goodput.simulate import Term
from bundlerun.launcher.planning.goodput.way import Keeps, Way

SHOWN = (
    Term.REDONE,
    Term.RECOVERING,
    Term.SNAPSHOTS,
    Term.CHECKPOINTS,
    Term.IDLE,
    Term.DOWN,
)
"""Where the rest goes, in the order of columns."""


def lines(found: Sequence[Goodput]) -> Iterator[str]:
    """Yields what was assumed, the table, and what its words mean."""
    yield from _assumed(found)
    yield ""
    head = ["nodes", "spares", "", "goodput", "least", "most", "of all"]
    head += [term.value for term in SHOWN] + ["stops/day", "joins/day"]
    rows = [_row(each) for each in found]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for number, row in enumerate([head, *rows]):
        # A blank line where the number of nodes is another one.
        if number > 1 and row[0] != rows[number - 2][0]:
            yield ""
        cells = (
            cell.ljust(width) if column == 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join(cells).rstrip()
    yield ""
    yield (
        "goodput: share of the time of the nodes wanted that goes into steps that stay, mean of "
        "the runs; least, most: of one run; of all: over spare nodes, too"
    )
    yield (
        "redone: lost steps; recovering: nobody trains; idle: of nodes that are there; down: of "
        "nodes that are not, with no spare in their place"
    )
    yield from _lost(found)


def _row(each: Goodput) -> list[str]:
    shares = (each.share, each.least, each.most, each.share_of_all)
    return [
        f"{each.fleet.nodes:,}",
        f"{each.fleet.spares:,}",
        each.way.name,
        *map(_percent, shares),
        *(_percent(each.terms[term]) for term in SHOWN),
        f"{each.stops_per_day:.3g}",
        f"{each.joins_per_day:.3g}",
    ]


def _percent(share: float) -> str:
    """Two digits of what is lost, however little."""
    if 0.0 < share < 0.00005:
        return "<0.01%"
    return f"{100 * share:.2f}%"


def _assumed(found: Sequence[Goodput]) -> Iterator[str]:
    fleet = found[0].fleet
    kinds: list[tuple[str, Absence]] = [
        ("a node fails", fleet.failure),
        ("the ranks of a node fail", fleet.crash),
        ("a node is drained", fleet.drain),
        (f"a rack of {fleet.rack_nodes} nodes fails", fleet.rack),
    ]
    told = [
        f"{what} every {span_text(kind.every_s)}"
        + (f", for {span_text(kind.away_s)}" if kind.away_s else "")
        for what, kind in kinds
        if math.isfinite(kind.every_s)
    ]
    yield "; ".join(told) or "nothing fails"
    yield f"{_devices(fleet.bundle)} a bundle, {_devices(fleet.devices)} a node"
    for way in {each.way.name: each.way for each in found}.values():
        several = len({each.way.checkpoint_every_s for each in found if each.way.name == way.name})
        yield _cost(way, is_best=several > 1)


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


def _cost(way: Way, *, is_best: bool) -> str:
    more = f" + {span_text(way.per_node_s)} per node" if way.per_node_s else ""
    parts = [
        f"{span_text(way.recovery_s)}{more} to the next step after a failure, "
        f"{span_text(way.join_s)}{more} as a node comes"
    ]
    if way.keeps is Keeps.MEMORY:
        steps = "each step" if way.snapshot_steps == 1 else f"{way.snapshot_steps} steps"
        parts.append(
            f"a snapshot after {steps} of {span_text(way.step_s)}, {way.snapshot_cost:.1%} of the "
            f"time; where no copy is left, {span_text(way.restart_s)} and the last checkpoint"
        )
    else:
        parts.append("each of these goes on from the last checkpoint")
    every = "as often as is best" if is_best else f"every {span_text(way.checkpoint_every_s)}"
    parts.append(f"checkpoints of {span_text(way.checkpoint_s)} {every}")
    return f"{way.name}: {'; '.join(parts)}"


def _lost(found: Sequence[Goodput]) -> Iterator[str]:
    for each in found:
        if each.lost and each.way.keeps is Keeps.MEMORY:
            yield (
                f"{each.fleet.nodes:,} nodes, {each.fleet.spares:,} spares: {each.lost} times in "
                f"{each.runs} runs no copy of some stage was left: on from the last checkpoint"
            )


def document(each: Goodput) -> dict[str, Any]:
    """One row as `--json` prints it; times in seconds."""
    way = each.way
    return {
        "nodes": each.fleet.nodes,
        "spares": each.fleet.spares,
        "by": way.name,
        "goodput": each.share,
        "least": each.least,
        "most": each.most,
        "of_all_nodes": each.share_of_all,
        "terms": {term.value: each.terms[term] for term in Term},
        "stops_per_day": each.stops_per_day,
        "joins_per_day": each.joins_per_day,
        "lost_copies": each.lost,
        "runs": each.runs,
        "recovery_s": way.recovery_s + way.per_node_s * each.fleet.nodes,
        "checkpoint_every_s": way.checkpoint_every_s if way.checkpoint_every_s < math.inf else None,
    }
