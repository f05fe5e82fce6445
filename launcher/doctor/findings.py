"""What an examination finds: how bad, about what, and the mend in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum

from bundlerun.launcher.console import noun_for
from bundlerun.launcher.errors import EXIT_DONE, EXIT_NODE


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"
    """A run starts, and is slow, or may fail later."""
    ERROR = "error"
    """A run fails at its start, or as soon as it needs this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    subject: what it is about, in a word or two.
    text: how it is, with values.
    mend: what to do; empty where nothing is wrong.
    """

    level: Level
    subject: str
    text: str
    mend: str = ""

    def __post_init__(self) -> None:
        assert bool(self.mend) is (self.level is not Level.OK), self.subject

    def to_plain(self) -> dict[str, str]:
        """As JSON has it."""
        return {**asdict(self), "level": str(self.level)}

    @classmethod
    def of_plain(cls, plain: Mapping[str, str]) -> Finding:
        """What `to_plain` wrote, perhaps on another node.

        Raises:
            KeyError, ValueError: it did not.
        """
        level = Level(plain["level"])
        mend = str(plain["mend"]) if level is not Level.OK else ""
        return cls(
            level=level,
            subject=str(plain["subject"]),
            text=str(plain["text"]),
            mend=mend or ("" if level is Level.OK else "see the text"),
        )


def ok(subject: str, text: str) -> Finding:
    """Nothing is wrong."""
    return Finding(level=Level.OK, subject=subject, text=text)


def warning(subject: str, text: str, mend: str) -> Finding:
    """A run starts all the same."""
    return Finding(level=Level.WARNING, subject=subject, text=text, mend=mend)


def error(subject: str, text: str, mend: str) -> Finding:
    """A run would fail."""
    return Finding(level=Level.ERROR, subject=subject, text=text, mend=mend)


def exit_code_of(findings: Iterable[Finding]) -> int:
    """0 where no finding is an error."""
    return EXIT_NODE if any(each.level is Level.ERROR for each in findings) else EXIT_DONE


def count_text(findings: Iterable[Finding]) -> str:
    """`2 errors, 1 warning`, or that all is well."""
    levels = [each.level for each in findings]
    found = [(levels.count(level), str(level)) for level in (Level.ERROR, Level.WARNING)]
    shown = [f"{number} {noun_for(number, noun)}" for number, noun in found if number]
    return ", ".join(shown) or f"all {len(levels)} findings are ok"


def lines_of(findings: Iterable[Finding]) -> Iterable[str]:
    """A line for each finding, and one more for its mend."""
    shown = list(findings)
    width = max((len(each.subject) for each in shown), default=0)
    for each in shown:
        yield f"  {each.level:<8} {each.subject:<{width}}  {each.text}"
        if each.mend:
            yield f"  {'':8} {'':{width}}  -> {each.mend}"
