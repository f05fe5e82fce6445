"""How a run ended, for those who come later: outcome.json, and the failure that began it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bundlerun.launcher.run_folder.events import EventName, name_of, read_events
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.paths import RunPaths

State = Literal["done", "stopped", "failed"]
Event = Mapping[str, Any]

FAULTS: tuple[EventName, ...] = ("failed", "rank gone", "rank stopped", "rank silent")
"""Events about a rank that has failed."""

_ENDS: tuple[EventName, ...] = ("coordinator: lost", "coordinator: over")
"""Events that may be about the end of a node."""

_TOGETHER_S = 2.0
"""A failure and what follows from it on other ranks and nodes come within this time, seconds."""


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
        else:
            create_text(paths.outcome, text)  # false where another node was quicker


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


def first_of(events: Sequence[Event]) -> FirstError | None:
    """Pure: the failure among events, in order of the wall clock, that the others follow from."""
    # A run that has finished a step since has recovered from all failures before it.
    last_step = max((i for i, event in enumerate(events) if _is_step(event)), default=-1)
    found = incidents(events[last_step + 1 :])
    return error_of(found[0][0]) if found else None


def error_of(event: Event) -> FirstError:
    """A failure that the event logs have, in the words of an outcome."""
    lost = lost_node(event)
    text = str(event.get("text") or f"local rank {event.get('local_rank')}: {event.get('why')}")
    return FirstError(
        node=lost or str(event.get("node", "")),
        local_rank=-1 if lost else int(event.get("local_rank", -1)),
        text=str(event.get("why")) if lost else text,
        when=str(event.get("wall", "")),
    )


def incidents(events: Sequence[Event]) -> list[list[Event]]:
    """Pure: failures that belong together; of each only those that the others follow from.

    A node that is lost takes the connections of all ranks with it: what they say of it is no
    failure of theirs. Its own end is seen by whoever keeps the rendezvous.

    Args:
        events: of all nodes, in order of the wall clock.
    """
    together: list[list[Event]] = []
    for event in events:
        if _is_step(event) or not (name_of(event) in FAULTS or lost_node(event)):
            continue
        # Measured from the first of a group, so that a chain of failures does not grow for ever.
        if not together or not are_together(together[-1][0], event):
            together.append([])
        together[-1].append(event)
    return [_beginnings(each) for each in together]


def are_together(one: Event, other: Event) -> bool:
    """Whether two events are close enough for one to follow from the other."""
    return abs(_seconds(one) - _seconds(other)) <= _TOGETHER_S


def _beginnings(together: Sequence[Event]) -> list[Event]:
    ranked = [(_rank_of_story(event, together), event) for event in together]
    least = min(rank for rank, _ in ranked)
    found: dict[object, Event] = {}
    for rank, event in ranked:
        if rank == least:
            # One event for each lost node, or rank: several may report the same.
            found.setdefault(lost_node(event) or _who(event), event)
    return list(found.values())


def lost_node(event: Event) -> str:
    """The node whose end this event is about; empty for others, and where it left in good order."""
    is_end = name_of(event) in _ENDS
    return str(event.get("lost") or "") if is_end else ""


def is_own_error(event: Event) -> bool:
    """Whether a rank failed of itself, and not because another one had ended."""
    return name_of(event) == "failed" and not event.get("is_follower", False)


def _is_step(event: Event) -> bool:
    return name_of(event) == "first step"


def _rank_of_story(event: Event, together: Iterable[Event]) -> int:
    """0 for what stands at the beginning of things, more for what follows from others."""
    # A rank's own error comes before the loss of its node, which may follow from it.
    if lost_node(event):
        return 1
    if name_of(event) == "failed":
        return 0 if is_own_error(event) else 2
    # The end of a process says less than the error that it has reported itself.
    has_told = any(name_of(other) == "failed" and _who(other) == _who(event) for other in together)
    return 3 if has_told else 1


def _who(event: Event) -> tuple[object, object]:
    return event.get("node"), event.get("local_rank")


def _seconds(event: Event) -> float:
    try:
        return datetime.fromisoformat(str(event["wall"])).timestamp()
    except (KeyError, ValueError):
        return 0.0
