"""What becomes of a run's last state, and what the run ends with for that; pure.

last state is     all steps done                told to stop
on disk           done, 0                       stopped, 75
in memory         stopped, 75: the same command on the same nodes writes it
nowhere           failed, 1                     stopped, 75: continues from an older one

A run whose folder was deleted or renamed stops for that, and is "stopped" even where it is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE
from bundlerun.launcher.run_folder.outcome import Outcome
from bundlerun.workers.rank.arrival.session import End

Kept = Literal["disk", "memory", "nowhere"]
"""Where the state of the last step is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run has ended, or this start of it.

    Args:
        outcome: state and code are the same on all ranks, the words the reporter's.
        kept: where the last state is.
        is_stopped: it was told to stop before its end.
        is_as_asked: if so, nothing came between.
    """

    outcome: Outcome
    kept: Kept
    is_stopped: bool
    is_as_asked: bool


def outcome_of(
    step: int, *, is_stopped: bool, has_lost_folder: bool, kept: Kept, why: str, where: str
) -> Outcome:
    """How the run ended.

    Args:
        step: finished steps.
        is_stopped: it was told to stop before its end.
        has_lost_folder: its folder was deleted or renamed during it.
        why: there is no checkpoint.
        where: the folder of this node's memory.
    """
    end = "told to stop" if is_stopped else "all steps done"
    # "Done" would say that everything is in the folder; the older history is not.
    if has_lost_folder:
        is_stopped = True
        end = "the run folder was deleted or renamed and is made again, without what is older"
    # Resumable even where all steps are done: the same command has still to write it.
    if kept == "memory":
        reason = (
            f"{end}, but the state of step {step} is on no disk: {why}. It is in the memory of the "
            f"nodes, here in {where}: make room, then the same command on the same nodes writes it"
        )
        return _outcome("stopped", EXIT_RESUMABLE, reason, step)
    # Told to stop: resumable whether or not there is a checkpoint of this very step.
    if is_stopped:
        has = "a checkpoint" if kept == "disk" else "no checkpoint, as it could not be written,"
        return _outcome("stopped", EXIT_RESUMABLE, f"{end}; there is {has} of step {step}", step)
    if kept == "nowhere":
        reason = (
            f"{end}, but the state of step {step} is lost: {why}; no snapshot keeps it "
            "either. Once that is mended, the same command continues from the newest checkpoint"
        )
        return _outcome("failed", EXIT_FAILED, reason, step)
    return _outcome("done", EXIT_DONE, end, step)


def _outcome(
    state: Literal["done", "stopped", "failed"], code: int, reason: str, step: int
) -> Outcome:
    return Outcome(state=state, exit_code=code, reason=reason, step=step)


def end_for_spares(outcome: Outcome, kept: Kept) -> End:
    """What the ranks hear of it that only wait."""
    if kept == "disk":
        return "safe" if outcome.state == "done" else "stopped"
    return "unsaved" if outcome.exit_code == EXIT_RESUMABLE else "failed"
