"""One wrong input: a command line, and what is to be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A command that cannot do what it is asked.

    Args:
        name: of the case, unique.
        line: what is typed, in the folder that `files.py` makes; `{port}` is a free one.
        told: a piece of the text that is to be printed, in one line.
        code: the exit code.
        environ: variables in addition; without one whose value is empty.
        before: commands that make what it needs, and end with 0.
        beside: a command that runs meanwhile, and is ended afterwards.
        until: what `beside` prints before the case begins; empty: both begin at once.
        needs: packages without which there is no such case.
        may_train: whether steps are done before it shows.
        shows_code: whether the user's own traceback is shown, as the fault is in their code.
    """

    name: str
    line: str
    told: str
    code: int = 2
    environ: Mapping[str, str] = field(default_factory=dict)
    before: tuple[str, ...] = ()
    beside: str = ""
    until: str = ""
    needs: tuple[str, ...] = ()
    may_train: bool = False
    shows_code: bool = False


@dataclass(frozen=True, slots=True)
class Chapter:
    """Cases about one subject."""

    title: str
    cases: tuple[Case, ...]


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A case that cannot be made on a usual machine, and what stands for it."""

    name: str
    why: str
