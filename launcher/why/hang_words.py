"""A hang in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bundlerun.launcher.why.hang import Cause, Hang, is_waiting
from bundlerun.launcher.why.sheet import Message, Talk
from bundlerun.launcher.why.stacks import told_frames
from bundlerun.launcher.why.stands import Stand

_SAID: Mapping[Cause, str] = {
    Cause.DATA: "{who} waited {age} for its data",
    Cause.CODE: "{who} was busy for {age}",
    Cause.DISK: "{who} waited {age} for a disk or a network folder",
    Cause.CHECKPOINT: "{who} wrote a checkpoint for {age}; is the run folder slow?",
    Cause.STOPPED: "{who} was stopped (SIGSTOP or a debugger) for {age}",
    Cause.UNKNOWN: "{who} stood for {age}",
}
_MESSAGES = {
    Message.ACTIVATION: "the activation of micro-batch {j} from rank {peer}",
    Message.GRADIENT: "the gradient of micro-batch {j} from rank {peer}",
    Message.TARGET: "the target of micro-batch {j} from rank {peer}",
    Message.NONE: "rank {peer}",
}
_PHASES = {
    "data": "reads data",
    "forward": "computes a forward",
    "backward": "computes a backward",
    "optimizer": "steps its optimizer",
    "checkpoint": "writes a checkpoint",
    "validate": "validates",
}
_TALKS = {Talk.BUNDLE: "for a word of its bundle", Talk.MEETING: "for all to have come"}


def who(stand: Stand) -> str:
    """A rank by its place."""
    return (
        f"rank {stand.rank} (node {stand.node_name}, local rank {stand.local_rank}, stage "
        f"{stand.stage} of bundle {stand.bundle})"
    )


def hang_text(hang: Hang, stands: Sequence[Stand]) -> str:
    """The verdict, one or two sentences."""
    by_rank = {stand.rank: stand for stand in stands}
    text = _story(hang, by_rank)
    if hang.place is not None:
        where = " in a loading process" if hang.in_helper else ""
        text += f", at {hang.place.place}{where}"
    waiting = [rank for rank in hang.waiting if rank not in hang.ranks]
    if waiting and hang.cause not in (Cause.LINK, Cause.MEETING):
        text += f"; {_ranks(waiting)} waited for it"
    return text


def _story(hang: Hang, by_rank: Mapping[int, Stand]) -> str:
    if hang.cause is Cause.LINK:
        return _link(hang, by_rank)
    if hang.cause is Cause.SILENT:
        return f"{_ranks(hang.ranks)} told nothing, and others waited: frozen, or its node cut off?"
    if hang.cause is Cause.MEETING:
        return f"the ranks that had come waited for {_ranks(hang.ranks) or 'each other'}"
    stand = by_rank[hang.ranks[0]]
    return _SAID[hang.cause].format(who=who(stand), age=_seconds(stand.age_s))


def _link(hang: Hang, by_rank: Mapping[int, Stand]) -> str:
    found = [by_rank[rank] for rank in hang.ranks]
    age = _seconds(max(stand.age_s for stand in found))
    nodes = list(dict.fromkeys(stand.node_name for stand in found))
    between = " and ".join(nodes) if len(nodes) > 1 else f"processes of node {nodes[0]}"
    first = found[0]
    if first.phase == "sync_wait":
        what = f"of the sum of stage {first.stage}"
    else:
        what = f"between {_ranks(hang.ranks)}"
    return (
        f"all ranks waited for each other: nothing {what} came through between {between} in {age}"
    )


def standing_lines(stands: Sequence[Stand]) -> Iterator[str]:
    """Where each rank stood, a line each."""
    for stand in stands:
        yield f"{who(stand)} {doing(stand)} for {_seconds(stand.age_s)}"


def stack_lines(stand: Stand) -> Iterator[str]:
    """The stacks of a rank, innermost call first."""
    if stand.state:
        kernel = f", in the kernel: {stand.kernel}" if stand.kernel else ""
        yield f"process {stand.pid}, state {stand.state}{kernel}; told by the {stand.by}"
    for thread in stand.threads:
        yield f"thread {thread.name}"
        yield from (f"  {frame.place}" for frame in told_frames(thread.frames))
    for helper in stand.helpers:
        yield f"loading process {helper.pid}, state {helper.state}"
        yield from (f"  {frame.place}" for frame in told_frames(helper.threads[0].frames))


def doing(stand: Stand) -> str:
    """What a rank did."""
    if stand.talk is not Talk.NONE:
        return f"waits {_TALKS[stand.talk]}"
    if stand.phase == "receive":
        wanted = _MESSAGES[stand.message].format(j=stand.microbatch, peer=stand.peer)
        return f"waits for {wanted}"
    if stand.phase == "sync_wait":
        legs = ", ".join(stand.legs)
        return f"waits for the sum of stage {stand.stage}" + (f" ({legs})" if legs else "")
    if is_waiting(stand):
        return f"waits ({stand.phase})"
    return _PHASES.get(stand.phase, stand.phase or "is between two phases")


def _ranks(ranks: Sequence[int]) -> str:
    if not ranks:
        return ""
    shown = ", ".join(map(str, ranks[:8])) + (" ..." if len(ranks) > 8 else "")
    return f"rank {shown}" if len(ranks) == 1 else f"ranks {shown}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
