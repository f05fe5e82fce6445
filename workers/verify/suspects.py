"""Pure: who of several replicas is wrong, by what each has found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing in which replicas differ.

    Args:
        index: of the thing.
        wrong: replicas that have not what more than half of all have; none where no majority is.
    """

    index: int
    wrong: tuple[int, ...]


def first_difference(table: Sequence[Sequence[int]]) -> Difference | None:
    """What replicas differ in.

    Args:
        table: of each replica, a number for each thing.

    Returns:
        None where all are equal.
    """
    found = None
    for index, column in enumerate(zip(*table, strict=True)):
        if len(set(column)) > 1:
            difference = Difference(index, _minority(column))
            # One that has a culprit tells more than one that comes before it and has none.
            if difference.wrong:
                return difference
            found = found or difference
    return found


def _minority(column: Sequence[int]) -> tuple[int, ...]:
    value, count = Counter(column).most_common(1)[0]
    # Of two that differ, nobody can say which is right.
    if 2 * count <= len(column):
        return ()
    return tuple(replica for replica, each in enumerate(column) if each != value)


def judged(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Difference | None:
    """What replicas differ in that have done the same thing twice.

    Args:
        first: of each replica, a number for each thing.
        second: the same of the second time.

    Returns:
        None where nobody can say, as it does not repeat itself on most of them.
    """
    repeats = [one == other for one, other in zip(first, second, strict=True)]
    if all(repeats):
        return first_difference(first)
    steady = Counter(tuple(row) for row, is_so in zip(first, repeats, strict=True) if is_so)
    value, count = steady.most_common(1)[0] if steady else ((), 0)
    # More than half repeat themselves and each other: the rest are wrong, each time otherwise.
    if 2 * count <= len(first):
        return None
    wrong = tuple(r for r, row in enumerate(first) if not repeats[r] or tuple(row) != value)
    rows = [row for r in wrong for row in (first[r], second[r])]
    unlike = (i for row in rows for i, own in enumerate(row) if own != value[i])
    return Difference(min(unlike), wrong)
