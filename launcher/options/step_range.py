"""Which steps are profiled, as people write it: a count, or from which to which."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

MOST = 100
"""Steps of one profile: more make files that no viewer opens."""


@dataclass(frozen=True, slots=True)
class StepRange:
    """Some steps in a row.

    Args:
        first: the number of the first, from 1 as in the log; 0: after the first two of a start,
            which are slower than those that follow.
        count: of steps.
    """

    first: int
    count: int

    @classmethod
    def parse(cls, typed: str) -> Self:
        """Reads "3" or "10:13".

        Raises:
            ValueError: it is neither, backwards, or more than `MOST`.
        """
        match = re.fullmatch(r"(?:(\d+):)?(\d+)", typed.strip())
        if match is None:
            raise ValueError(typed)
        first, last = int(match[1] or 0), int(match[2])
        count = last - first + 1 if match[1] else last
        if not 0 < count <= MOST or (match[1] and first < 1):
            raise ValueError(typed)
        return cls(first, count)

    def __str__(self) -> str:
        return f"{self.first}:{self.first + self.count - 1}" if self.first else f"{self.count}"

    def begins_at(self, step: int, num_done: int) -> bool:
        """Whether a step is the first.

        Args:
            step: its number, from 0 as in files.
            num_done: steps that this start has done before it.
        """
        return step + 1 == self.first if self.first else num_done == 2


def profile_steps(text: str) -> str:
    """Checks the text of an option; empty: no step.

    Raises:
        ValueError: see `StepRange.parse`.
    """
    return str(StepRange.parse(text)) if text else ""
