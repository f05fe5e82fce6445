"""What a rank saves while it trains: snapshots, checkpoints, and at the end the last state."""

from __future__ import annotations

from collections.abc import Callable

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.run.keeper import Keeper
from bundlerun.workers.snapshot.snapshots import AfterStep, Snapshots, Total
from bundlerun.workers.state.ending import Ending, Kept, outcome_of


class Saving:
    """Saves the state of a run while it lasts.

    Args:
        keeper: writes checkpoints.
        snapshots: of this rank; None: there are none.
        total: adds up over all ranks.
        meters: gets the time of checkpoints.
        looks_lost: whether the run folder is gone; None on all ranks but one.
    """

    def __init__(
        self,
        keeper: Keeper,
        snapshots: Snapshots | None,
        total: Total,
        meters: Meters,
        looks_lost: Callable[[], bool] | None,
    ) -> None:
        self._keeper = keeper
        self._snapshots = snapshots
        self._total = total
        self._meters = meters
        self._looks_lost = looks_lost

    @property
    def is_review_next(self) -> bool:
        """Whether all ranks agree on how often there is a snapshot in the next `after_step`."""
        return self._snapshots is not None and self._snapshots.is_review_next

    def after_step(self, progress: Progress, step_s: float) -> AfterStep:
        """Takes a snapshot, where one is due; see `Snapshots.after_step`.

        Collective: every active rank.
        """
        if self._snapshots is None:
            return AfterStep(is_kept=False)
        return self._snapshots.after_step(progress, step_s, self._total)

    def settle(self) -> None:
        """Returns once nobody is copying the state any more.

        Collective: the bundle.
        """
        if self._snapshots is not None:
            self._snapshots.before_last()

    def checkpoint(self, progress: Progress) -> None:
        """Writes a checkpoint; if that fails, says so and continues without it.

        Collective: every active rank.
        """
        with self._meters.phase("checkpoint"):
            self._keeper.save(progress)

    def keep_for_next(self, progress: Progress) -> bool:
        """Keeps the state in memory, due or not, for the round that all go on in; whether all do.

        A copy that is under way is not waited for: whoever takes from it does so.
        Collective: every active rank.
        """
        if self._snapshots is None:
            return False
        if self._snapshots.has(progress.step):
            return True  # where memory has run out, who was to pass its share on ends the move
        self._snapshots.before_last()
        # Nobody writes over the older slot before all have come out of that (I8).
        self._total([0.0])
        is_kept = self._snapshots.save_last(progress)
        return not any(self._total([float(not is_kept)]))

    def end(self, progress: Progress, *, is_stopped: bool) -> Ending:
        """Makes sure that the last state is kept somewhere, and says how the run has ended.

        Collective: every active rank.

        Args:
            progress: of the last step.
            is_stopped: the run was told to stop before its end.
        """
        kept, has_lost_folder = self._keep_last(progress)
        outcome = outcome_of(
            progress.step,
            is_stopped=is_stopped,
            has_lost_folder=has_lost_folder,
            kept=kept,
            why=self._keeper.why_unsaved,
            where=self._keeper.where_in_memory,
        )
        is_as_asked = kept == "disk" and not has_lost_folder
        return Ending(outcome=outcome, kept=kept, is_stopped=is_stopped, is_as_asked=is_as_asked)

    def _keep_last(self, last: Progress) -> tuple[Kept, bool]:
        """Where the last state is, and whether the folder was lost; all ranks alike.

        If no disk has it, it is kept in memory.
        """
        if self._snapshots is not None:
            # The copy of the last step may still be under way (I8).
            self._snapshots.before_last()
        is_missing, has_lost_folder = self._look_for(last.step)
        if is_missing and has_lost_folder:  # after the last checkpoint
            self.checkpoint(last)
            is_missing, has_lost_folder = self._look_for(last.step)
        if not is_missing:
            return "disk", has_lost_folder
        # Memory is the last resort, if the state is good and snapshots are on.
        is_nowhere = (
            self._keeper.has_refused(last.step)
            or self._snapshots is None
            or not self._snapshots.save_last(last)
        )
        # One rank's share missing makes the whole state worthless, so all ranks have to agree.
        if any(self._total([float(is_nowhere)])):
            return "nowhere", has_lost_folder
        self._keeper.mark_unsaved(last.step)
        return "memory", has_lost_folder

    def _look_for(self, step: int) -> tuple[bool, bool]:
        """Whether a checkpoint is missing, and whether the folder was lost; the same on all.

        Collective: every active rank.
        """
        is_missing = has_lost = False
        if self._looks_lost is not None:
            has_lost = self._looks_lost()
            is_missing = not self._keeper.is_saved(step)
        # One rank looks, and all act on what it saw: a shared disk may show others something else.
        num_missing, num_lost = self._total([float(is_missing), float(has_lost)])
        if has_lost:
            self._keeper.keep_run_id()
        return num_missing > 0, num_lost > 0
