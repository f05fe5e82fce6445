"""A decision in words: the best plans, and what limits each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bundlerun.launcher.planning.search.judge import Planned

_UNITS = ((1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "us", 1e6))


def plan_rows(plans: Sequence[Planned], names: Sequence[str]) -> list[dict[str, Any]]:
    """The plans as plain values.

    Args:
        plans: the best ones first.
        names: of the boundaries.
    """
    return [
        {
            "shape": str(plan.candidate.shape),
            "cut": [names[number] for number in plan.candidate.cuts],
            "schedule": plan.candidate.schedule,
            "sync": plan.candidate.sync,
            "microbatch_size": plan.candidate.samples,
            "recompute": sorted(plan.candidate.recompute),
            "step_s": plan.forecast.step_s,
            "terms": {term.value: s for term, s in plan.forecast.terms.items()},
            "limit": plan.forecast.limit.value,
            "bubble": plan.forecast.bubble,
            "egress_bytes": plan.forecast.egress_bytes,
            "memory_bytes": max((m.total for m in plan.forecast.memory), default=0),
        }
        for plan in plans
    ]


def seconds(value: float) -> str:
    """Such as 1.23 s, or 45.6 ms."""
    _, unit, scale = next(each for each in _UNITS if value >= each[0])
    return f"{value * scale:.3g} {unit}"


def _gap(document: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    over = row["step_s"] / document["bound_s"] - 1 if document["bound_s"] else 0.0
    return f"{over:.1%}"


def chosen_line(document: Mapping[str, Any]) -> str:
    """What was chosen, in one line."""
    best = document["plans"][0]
    rate = document["batch_size"] / best["step_s"]
    cut = f" cut at {', '.join(best['cut'])}" if best["cut"] else ""
    again = ", ".join(map(str, best["recompute"]))
    return (
        f"chosen: shape {best['shape']}{cut}, {best['schedule']}, micro-batches of "
        f"{best['microbatch_size']}{f', stages {again} compute again' if again else ''}; "
        f"{seconds(best['step_s'])} a step foreseen ({rate:.4g} samples/s), within "
        f"{_gap(document, best)} of the best possible; limited by {best['limit']}"
    )


def table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the best plans, a row each."""
    rows = [
        ("shape", "cut", "schedule", "sync", "micro-batch", "step", "over", "memory", "limited by")
    ]
    rows += [
        (
            row["shape"] + (f" recompute {row['recompute']}" if row["recompute"] else ""),
            ",".join(row["cut"]) or "-",
            row["schedule"],
            row["sync"],
            str(row["microbatch_size"]),
            seconds(row["step_s"]),
            _gap(document, row),
            f"{row['memory_bytes'] / 1e9:.2f} GB",
            row["limit"],
        )
        for row in document["plans"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for each in rows:
        cells = (cell.ljust(width) for cell, width in zip(each, widths, strict=True))
        yield "  ".join(cells).rstrip()
    yield "(over: than the bound, which no plan can be below; memory: of the rank that needs most)"
