"""Pure: why a run stands, from where each of its ranks stood.

    rank 2 loads data <- rank 3 waits for its activation <- rank 1 waits for the sum of stage 1

Of ranks that wait for each other, the one that waits for nobody is the story. Where all wait, what
one has sent did not come to another: it is a link.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from bundlerun.launcher.why.sheet import Talk
from bundlerun.launcher.why.stacks import Frame, is_users, told_place
from bundlerun.launcher.why.stands import Stand, margin_s


class Cause(StrEnum):
    """What a run stands for.

    DATA: a rank waits for samples. CODE: it computes, in the user's model or recipe, or below.
    DISK: the kernel waits for a disk or a network folder. CHECKPOINT: it writes one. STOPPED: its
    process is stopped. SILENT: it has told nothing, and others wait for it. LINK: all wait, so that
    a message is lost between two. MEETING: a rank has not come to the round. UNKNOWN: none of them.
    """

    DATA = "data"
    CODE = "code"
    DISK = "disk"
    CHECKPOINT = "checkpoint"
    STOPPED = "stopped"
    SILENT = "silent"
    LINK = "link"
    MEETING = "meeting"
    UNKNOWN = "unknown"


_CAUSES: Mapping[str, Cause] = {
    "data": Cause.DATA,
    "forward": Cause.CODE,
    "backward": Cause.CODE,
    "optimizer": Cause.CODE,
    "validate": Cause.CODE,
    "checkpoint": Cause.CHECKPOINT,
}
_WAITS = ("receive", "sync_wait", "snapshot_wait", "send")
_ASLEEP = "D"
_STOPPED = "Tt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Why a run stood.

    Args:
        ranks: whose story it is; two of a link, sender first where that is known.
        place: where in the code; None where that says nothing.
        in_helper: whether that is in a process that loads data.
        waiting: all ranks that wait for them, directly or not.
    """

    cause: Cause
    ranks: tuple[int, ...]
    place: Frame | None = None
    in_helper: bool = False
    waiting: tuple[int, ...] = ()


def is_hang(stands: Iterable[Stand]) -> bool:
    """Whether the wait of one of them ran out, or its agent had to tell for it."""
    return any(
        stand.age_s >= stand.limit_s - margin_s(stand.limit_s) or stand.by == "agent"
        for stand in stands
    )


def is_waiting(stand: Stand) -> bool:
    """Whether a rank waited for another one."""
    if stand.talk is Talk.MEETING and stand.threads:
        # It makes the model and opens the data meanwhile, which may be what does not end.
        place = told_place(stand.threads[0].frames)
        return place is None or not is_users(place)
    return stand.talk is not Talk.NONE or stand.phase in _WAITS


def awaited(stand: Stand, others: Mapping[int, Stand]) -> set[int]:
    """Whom a rank waited for; nobody where all that it could be wait at the same thing."""
    if stand.state in [*_STOPPED] or not is_waiting(stand):
        return set()
    if stand.talk is not Talk.NONE:
        is_meeting = stand.talk is Talk.MEETING
        return {
            rank
            for rank, other in others.items()
            if rank != stand.rank
            and other.talk is not stand.talk
            and (is_meeting or _are_together(stand, other))
        }
    if stand.phase == "receive":
        return {stand.peer}
    if stand.phase == "sync_wait":
        return {
            rank
            for rank, other in others.items()
            if other.stage == stand.stage and other.phase != "sync_wait"
        }
    if stand.phase == "snapshot_wait":
        return {
            rank
            for rank, other in others.items()
            if other.bundle == stand.bundle and other.phase != "snapshot_wait"
        }
    return set()


def _are_together(stand: Stand, other: Stand) -> bool:
    return stand.bundle == other.bundle or stand.stage == other.stage


def hang_of(stands: Sequence[Stand]) -> Hang | None:
    """Why the run stood; None where nobody did."""
    by_rank = {stand.rank: stand for stand in stands}
    if not by_rank:
        return None
    waits = {rank: awaited(stand, by_rank) for rank, stand in by_rank.items()}
    own = [stand for stand in stands if not is_waiting(stand) or stand.state in [*_STOPPED]]
    behind = {stand.rank: _behind(stand.rank, waits) for stand in own}
    if own:
        # Of several that do something of their own, the one that most wait for, then the longest.
        first = max(own, key=lambda stand: (len(behind[stand.rank]), stand.age_s))
        return _of_rank(first, behind[first.rank])
    missing = sorted({peer for peers in waits.values() for peer in peers} - by_rank.keys())
    if missing:
        return Hang(
            cause=Cause.SILENT,
            ranks=tuple(missing),
            waiting=tuple(sorted(_behind(missing[0], waits))),
        )
    if any(stand.talk is Talk.MEETING for stand in stands):
        absent = sorted(set(range(stands[0].world_size)) - by_rank.keys())
        return Hang(cause=Cause.MEETING, ranks=tuple(absent), waiting=tuple(sorted(by_rank)))
    return _of_link(stands, by_rank)


def _behind(rank: int, waits: Mapping[int, set[int]]) -> set[int]:
    """Who waits for a rank, directly or through others."""
    found: set[int] = set()
    queue = [rank]
    while queue:
        last = queue.pop()
        for waiter, peers in waits.items():
            if last in peers and waiter not in found and waiter != rank:
                found.add(waiter)
                queue.append(waiter)
    return found


def _of_rank(stand: Stand, waiting: Iterable[int]) -> Hang:
    place, in_helper, state = _place(stand)
    cause = _CAUSES.get(stand.phase, Cause.UNKNOWN)
    if stand.state in [*_STOPPED]:
        cause, place = Cause.STOPPED, None
    elif cause is Cause.UNKNOWN and place is not None and is_users(place):
        cause = Cause.CODE
    elif state == _ASLEEP and cause is not Cause.CHECKPOINT:
        cause = Cause.DISK
    return Hang(
        cause=cause,
        ranks=(stand.rank,),
        place=place,
        in_helper=in_helper,
        waiting=tuple(sorted(waiting)),
    )


def _place(stand: Stand) -> tuple[Frame | None, bool, str]:
    """Where a rank was, whether in a process that loads data, and the state of the process."""
    helpers = [helper for helper in stand.helpers if helper.threads]
    if stand.phase == "data" and helpers:
        places = [(told_place(helper.threads[0].frames), helper) for helper in helpers]
        # One that reads before one that waits for something to read.
        place, helper = max(
            places, key=lambda each: (each[1].state == _ASLEEP, each[0] and is_users(each[0]))
        )
        if place is not None and (is_users(place) or helper.state == _ASLEEP):
            return place, True, helper.state
    if not stand.threads:
        return None, False, stand.state
    return told_place(stand.threads[0].frames), False, stand.state


def _of_link(stands: Sequence[Stand], by_rank: Mapping[int, Stand]) -> Hang:
    """All wait: the two between whom nothing comes through."""
    everyone = tuple(sorted(by_rank))
    for stand in stands:
        other = by_rank.get(stand.peer)
        if stand.phase != "receive" or other is None:
            continue
        if stand.rank in awaited(other, by_rank):
            # Who has bytes left that nobody takes in is the sender.
            pair = (other, stand) if other.unsent or not stand.unsent else (stand, other)
            ranks = tuple(each.rank for each in pair)
            return Hang(cause=Cause.LINK, ranks=ranks, waiting=everyone)
    in_sync = [stand for stand in stands if stand.phase == "sync_wait"]
    across = [stand for stand in in_sync if {"exchange", "gather"} & stand.legs.keys()]
    stuck = across or in_sync or list(stands)
    # A stage whose ranks all sum up: others wait for another one of them.
    stage = stuck[0].stage
    found = sorted((each for each in stuck if each.stage == stage), key=lambda s: not s.unsent)
    return Hang(
        cause=Cause.LINK, ranks=tuple(each.rank for each in found), place=None, waiting=everyone
    )
