"""What is told of shares and of slow ranks, in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.pace_words import slow_text
from bundlerun.workers.shares.balance import Change
from bundlerun.workers.shares.slow import Found

_MOST_TOLD = 8


def change_text(change: Change, topology: Topology, nodes: Sequence[str]) -> str:
    """Which shares there are, since when, and why."""
    place = topology.places[change.slowest]
    node = nodes[place.node] if place.node < len(nodes) else str(place.node)
    times = change.speeds.seconds
    least = min(times)
    return (
        f"micro-batches are shared out anew from step {change.first_step + 1} on: "
        f"{_counts(change.counts)} (before {_counts(change.before)}): bundle {place.bundle} takes "
        f"{_ms(times[place.bundle])} for one (rank {change.slowest} of node {node}), the fastest "
        f"{_ms(least)}; the longest computes {_ms(change.span_s)} a step instead of "
        f"{_ms(change.span_before_s)}"
    )


def found_text(found: Found) -> str:
    """Which rank is slow, or that none is any more."""
    steps = f"in steps {found.first_step + 1} to {found.end_step}"
    if found.slow is None:
        return f"all ranks compute as their peers again ({steps})"
    slow = found.slow
    own = next(each for each in found.ranks if each.rank == slow.rank)
    peers = [e for e in found.ranks if e.stage == own.stage and e is not own and e.num_microbatches]
    each = sorted(sum(e.seconds.values()) / e.num_microbatches for e in peers)
    own_s = sum(own.seconds.values()) / max(1, own.num_microbatches)
    return (
        f"{slow_text(slow, found.ranks)}: {_ms(own_s)} a micro-batch, its peers {_ms(each[0])} to "
        f"{_ms(each[-1])}, {steps}"
    )


def _counts(counts: Sequence[int]) -> str:
    """8 + 4; of many, how many have how many."""
    if len(counts) <= _MOST_TOLD:
        return " + ".join(map(str, counts))
    each = Counter(counts)
    return ", ".join(f"{each[count]} bundles with {count}" for count in sorted(each, reverse=True))


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"
