"""Pure: the lines of a history that trackers are told, as numbers by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bundlerun.launcher.run_folder import history
from bundlerun.launcher.trackers.interface import Row

KEPT = "kept"
"""Of a step's line: a snapshot has it, and all before it."""
_KINDS = ("step", "epoch", "eval")
_NOT_FINITE = {"nan": float("nan"), "inf": float("inf"), "-inf": float("-inf")}
"""How JSON says them, see `plain` of the writer."""


def rows_from(data: bytes, first: int = 0) -> list[Row]:
    """The rows that trackers are told of whole lines; others have no step, or no numbers.

    Args:
        data: lines of the history.
        first: the number of the first row.
    """
    return [row for _, row in rows_with_places(data, first)]


def rows_with_places(data: bytes, first: int = 0) -> Iterator[tuple[int, Row]]:
    """The same, each with the place in `data` at which its line begins."""
    place = 0
    for line in data.splitlines(keepends=True):
        values = history.row_of(line)
        kind, step = values.pop("kind", None), values.pop("step", None)
        time = values.pop("time", 0.0)
        if kind in _KINDS and isinstance(step, int):
            values.pop(KEPT, None)
            scalars = dict(_numbers(kind, values))
            if scalars:
                yield place, Row(number=first, step=step, time=float(time), scalars=scalars)
                first += 1
        place += len(line)


def up_to_kept(data: bytes) -> bytes:
    """The lines up to the last one after which no death takes back what is before it."""
    end = 0
    place = 0
    for line in data.splitlines(keepends=True):
        place += len(line)
        row = history.row_of(line)
        if row.get(KEPT) or row.get("kind") in ("stop", "end"):
            end = place
    return data[:end]


def _numbers(prefix: str, values: Mapping[str, object]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, str):
            if value in _NOT_FINITE:
                yield f"{prefix}/{name}", _NOT_FINITE[value]
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", float(value)
