"""Pure: what is to become of a job whose step has ended.

    the run is       [1] finished                     -> exit 0, whatever srun says
                     [2] failed                       -> its exit code, no requeue
                     [3] stopped, by a person         -> 75
                     [4] stopped, by Slurm's signal   -> requeue
                     [5] cut short (nodes lost, ...)  -> requeue

A requeue needs budget, and progress: three starts in a row from one step are enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from bundlerun.launcher.errors import EXIT_CONFIG, EXIT_DONE, EXIT_FAILED, EXIT_NODE, EXIT_RESUMABLE

MOST_STARTS = 3
"""Starts in a row from the same step, after which the run counts as failed."""


class RunState(Enum):
    """What the run says of itself."""

    DONE = "done"
    STOPPED = "stopped"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """How a step of the job ended.

    Args:
        state: what the run left in its folder.
        code: the run's exit code, where it failed.
        reason: why, in the run's words.
        srun_code: of srun; 137 also where a node died and the others finished.
        was_signalled: Slurm, or a person through Slurm, asked for a stop.
        has_stepped: this start finished a step.
    """

    state: RunState
    srun_code: int
    code: int = EXIT_FAILED
    reason: str = ""
    was_signalled: bool = False
    has_stepped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`exit_code` counts where the job is not requeued, or cannot be."""

    requeue: bool
    exit_code: int
    text: str


def judge(end: End, *, restarts: int, budget: int, starts: Sequence[int]) -> Verdict:
    """What the job does next.

    Args:
        restarts: requeues so far.
        budget: requeues in all.
        starts: the step at which each start of this job began, this one's last.
    """
    # [1] Where the run left no outcome, srun's exit code is the only word there is.
    if end.state is RunState.DONE or (end.state is RunState.UNKNOWN and not end.srun_code):
        return Verdict(requeue=False, exit_code=EXIT_DONE, text="the run is finished")
    # [2] The run knows best why: another start would fail the same way.
    if end.state is RunState.FAILED:
        text = f"the run failed: {end.reason or 'see the log'}"
        return Verdict(requeue=False, exit_code=end.code or EXIT_FAILED, text=text)
    # A wrong option or a broken node: another start would fail the same way. After a step it
    # may be one node's fault, and a requeue can get another.
    if end.srun_code in (EXIT_CONFIG, EXIT_NODE) and not end.has_stepped:
        text = "no node could begin; what is wrong is said above"
        return Verdict(requeue=False, exit_code=end.srun_code, text=text)
    # [3] Somebody used `bundlerun drain`, and does not want the job back.
    if end.state is RunState.STOPPED and not end.was_signalled:
        text = f"stopped, not finished: {end.reason or 'on request'}; submit it again to continue"
        return Verdict(requeue=False, exit_code=EXIT_RESUMABLE, text=text)
    # [4] and [5] differ in one thing: who was stopped in good order may have made no step.
    stopped = end.state is RunState.STOPPED
    why = "told to stop" if stopped or end.was_signalled else f"srun ended with {end.srun_code}"
    refusal = refuse(restarts=restarts, budget=budget, starts=starts, is_orderly=stopped)
    if refusal:
        return Verdict(requeue=False, exit_code=EXIT_FAILED, text=f"{why}; {refusal}")
    text = f"{why}; requeue {restarts + 1} of {budget}"
    return Verdict(requeue=True, exit_code=EXIT_RESUMABLE, text=text)


def refuse(*, restarts: int, budget: int, starts: Sequence[int], is_orderly: bool = False) -> str:
    """Why the job is not to be requeued; empty where it may be.

    Args:
        is_orderly: the run stopped on request, so that no progress is no sign of a fault.
    """
    if restarts >= budget:
        return f"the requeue budget of {budget} is used up"
    # `starts` has where each began: equal ones mean that no start in between got further.
    last = starts[-MOST_STARTS:]
    if not is_orderly and len(last) == MOST_STARTS and len(set(last)) == 1:
        return f"{MOST_STARTS} starts in a row made no step beyond {last[-1]}"
    return ""
