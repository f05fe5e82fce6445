"""One line of the table: what a case has found, what was wanted, and whether that is so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Verdict = Literal["yes", "NO", "-", "needs a GPU", "cannot run", "not run"]
"""Of what was wanted. "-": nothing was, it is a figure. "cannot run": something is missing here."""
FAILURES: Sequence[Verdict] = ("NO", "not run")
"""With one of these the table as a whole has not passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the table.

    Args:
        case: its short name, such as G4.
        what: has been measured, in words.
        measured: the answer, with its unit.
        wanted: what it should be; empty: it is a figure.
        ok: whether it is.
        value: the number in `measured`, where it is one.
    """

    case: str
    what: str
    measured: str
    wanted: str = ""
    ok: Verdict = "-"
    value: float | None = None

    def line(self) -> str:
        """For a reader: `case | measured | wanted | ok`."""
        return " | ".join((f"{self.case} {self.what}", self.measured, self.wanted or "-", self.ok))

    def text(self) -> str:
        """For a program, in one line; `from_text` reads it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Finding:
        """The finding of a line that `text` gave."""
        return cls(**json.loads(text))


def number(value: float, unit: str = "") -> str:
    """A number of three digits or more, with its unit."""
    digits = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{digits} {unit}".rstrip()
