"""How a run ended, for those who come later: outcome.json, and the failure that began it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from launcher.events import read_events
from launcher.files import write_text
from launcher.paths import RunPaths

State = Literal["done", "stopped", "failed"]

_TOGETHER_S = 2.0
"""A failure and what follows from it on other ranks and nodes come within this time, seconds."""

_FOLLOWERS = ("gloo", "Connection", "Broken pipe", "DistNetworkError", "DistStoreError", "is gone")
"""What errors say that are the work of another rank's end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstError:
    """What went wrong first.

    local_rank: -1 where it is the node as a whole. text: a traceback, or what was seen of it.
    """

    node: str
    local_rank: int
    text: str
    when: str = ""

    @property
    def last_line(self) -> str:
        """The error without its traceback."""
        return self.text.strip().splitlines()[-1] if self.text.strip() else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The end of a run.

    exit_code: what `bundlerun run` ends with. step: steps of the run that are finished.
    """

    state: State
    exit_code: int
    reason: str
    step: int
    first_error: FirstError | None = None
    when: str = ""


def write_outcome(paths: RunPaths, outcome: Outcome, *, is_last_word: bool = True) -> None:
    """Writes the end of the run; without `is_last_word` only where none is written yet."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    text = json.dumps({**asdict(outcome), "when": now}, indent=2) + "\n"
    with suppress(OSError):  # a full disk: the exit code and the log say it too
        if is_last_word:
            write_text(paths.outcome, text)
            return
        beside = paths.outcome.with_name(f"{paths.outcome.name}.{os.getpid()}")
        beside.write_text(text, encoding="utf-8")
        try:
            os.link(beside, paths.outcome)  # fails where another node was quicker
        finally:
            beside.unlink(missing_ok=True)


def read_outcome(paths: RunPaths) -> Outcome | None:
    """How the run ended; None while it has not."""
    try:
        values = json.loads(paths.outcome.read_text(encoding="utf-8"))
        first = values.pop("first_error")
        return Outcome(**values, first_error=FirstError(**first) if first else None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def first_error(folder: Path) -> FirstError | None:
    """What began the failures since the last step was finished, as the event logs tell it."""
    return first_of(read_events(folder))


def first_of(events: Sequence[Mapping[str, Any]]) -> FirstError | None:
    """Pure: the failure among events, in order of the wall clock, that the others follow from."""
    recent: list[Mapping[str, Any]] = []
    for event in events:
        if event["event"] == "first step":
            recent.clear()
        elif event["event"] in ("failed", "rank gone", "rank stopped", "rank silent"):
            recent.append(event)
    if not recent:
        return None
    begin = _seconds(recent[0])
    together = [event for event in recent if _seconds(event) - begin <= _TOGETHER_S]
    story = min(together, key=lambda event: _rank_of_story(event, together))
    text = str(story.get("text") or f"local rank {story.get('local_rank')}: {story.get('why')}")
    return FirstError(
        node=str(story.get("node", "")),
        local_rank=int(story.get("local_rank", -1)),
        text=text,
        when=str(story.get("wall", "")),
    )


def _rank_of_story(event: Mapping[str, Any], together: Iterable[Mapping[str, Any]]) -> int:
    """0 for what stands at the beginning of things, more for what follows from others."""
    if event["event"] == "failed":
        return 2 if any(word in str(event.get("text")) for word in _FOLLOWERS) else 0
    has_told = any(other["event"] == "failed" and _who(other) == _who(event) for other in together)
    return 3 if has_told else 1


def _who(event: Mapping[str, Any]) -> tuple[object, object]:
    return event.get("node"), event.get("local_rank")


def _seconds(event: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(str(event["wall"])).timestamp()
    except (KeyError, ValueError):
        return 0.0
