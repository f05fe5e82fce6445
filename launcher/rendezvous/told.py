"""Pure: what the console of a node is told of the rendezvous, in a line each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bundlerun.launcher.rendezvous.protocol.messages import Round
from bundlerun.launcher.rendezvous.protocol.standing import Member
from bundlerun.launcher.rendezvous.protocol.wishes import Note

UNREACHED_S = 2.0
"""After how long it is told that no endpoint answers."""
FIRST_S = 5.0
"""After how long it is told what a node waits for; most rounds begin sooner."""
CHANGED_S = 5.0
"""How long a line stands at least before another one says what has changed."""
EVERY_S = 30.0
"""After how long the same is told again."""
_MAX_NAMES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Obstacle:
    """Why there is no round for this node yet.

    what: in words. is_unreached: no endpoint answers. is_endless: it waits without a limit.
    """

    what: str
    is_unreached: bool = False
    is_endless: bool = False


def obstacle_of(member: Member, refusals: Sequence[str], *, is_in_touch: bool) -> Obstacle:
    """What keeps a node that waits.

    Args:
        refusals: what is wrong with the endpoints that could not be reached, a text each.
        is_in_touch: the node is registered with a coordinator.
    """
    if not is_in_touch and refusals:
        what = f"no endpoint of the rendezvous answers: {'; '.join(refusals)}; it keeps trying"
        return Obstacle(what=what, is_unreached=True)
    if member.is_spare and member.pulse:
        what = f"round {member.pulse.number} has begun without it, and it is spare"
        return Obstacle(what=what, is_endless=True)
    if member.pulse and member.pulse.waits_for:
        return Obstacle(what=member.pulse.waits_for)
    return Obstacle(what="no coordinator is active yet")


class WaitLines:
    """What was told of one wait, so that it is told again seldom.

    Args:
        node: the node's name.
        now: when the wait began, seconds of a monotonic clock.
    """

    def __init__(self, node: str, now: float) -> None:
        self._node = node
        self._begin = now
        self._told: Obstacle | None = None
        self._told_at = now

    def line(self, obstacle: Obstacle, now: float, deadline: float) -> str:
        """What is to be told now; empty for nothing."""
        if self._told is None:
            due_s = UNREACHED_S if obstacle.is_unreached else FIRST_S
            is_due = now - self._begin >= due_s
        else:
            is_same = obstacle == self._told
            is_due = now - self._told_at >= (EVERY_S if is_same else CHANGED_S)
            # A wait without a limit is told once, not every half a minute.
            is_due = is_due and not (is_same and obstacle.is_endless)
        if not is_due:
            return ""
        self._told, self._told_at = obstacle, now
        limit = "" if obstacle.is_endless else f"; it gives up in {max(0.0, deadline - now):.0f} s"
        return f"node {self._node} waits: {obstacle.what}{limit}"


def joined_line(round_: Round, node: str) -> str:
    """That a node is in a round, with whom, and which ranks are here."""
    names = [seat.name for seat in round_.seats]
    counts = [seat.num_workers for seat in round_.seats]
    others = [name for name in names if name != node]
    text = f"node {node} is in round {round_.number}"
    text += f" with {_names(others)}" if others else " alone"
    if all(counts):  # torch tells the handler only in the first round
        index = names.index(node)
        first = sum(counts[:index])
        last = first + counts[index] - 1
        ranks = f"ranks {first} to {last}" if last > first else f"rank {first}"
        text += f": {ranks} of {sum(counts)} {'are' if last > first else 'is'} here"
    return text


def event_line(note: Note, node: str) -> str:
    """What is told of an event of the rendezvous; empty for most of them."""
    number, why = note.details["round"], note.details["why"]
    match note.event:
        case "over":
            return f"node {node}: round {number} is over: {why}; its ranks start again"
        case "cut off":
            return f"node {node} is cut off, {why}: its ranks stop and it looks for the others"
        case "fenced":
            return f"node {node}: {why}"
        case _:
            return ""


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES])
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{'nodes' if len(names) > 1 else 'node'} {shown}{more}"
