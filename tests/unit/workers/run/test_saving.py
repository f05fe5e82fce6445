"""Where the last state of a run ends up, rank by rank, and what the run ends with for that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.run.saving import Saving
from bundlerun.workers.snapshot.pace import Adapted
from bundlerun.workers.snapshot.snapshots import AfterStep
from bundlerun.workers.state.ending import Ending

LAST = Progress(step=7, epoch=1, step_in_epoch=2, samples_seen=70)


class Disk:
    """Stands for what writes checkpoints, and for the reporter that looks after their folder."""

    why_unsaved = "no space"
    where_in_memory = "/memory"

    def __init__(self, *, has_it: bool, is_lost: bool = False, takes_it: bool = True) -> None:
        self.has_it, self.is_lost, self.takes_it = has_it, is_lost, takes_it
        self.marked: list[int] = []

    def save(self, progress: Progress) -> None:
        self.has_it = self.takes_it

    def is_saved(self, step: int) -> bool:
        return self.has_it

    def has_refused(self, step: int) -> bool:
        return False

    def keep_run_id(self) -> None:
        assert self.is_lost

    def mark_unsaved(self, step: int) -> None:
        self.marked.append(step)

    def looks_lost(self) -> bool:
        return self.is_lost


class Memory:
    """Stands for snapshots."""

    def __init__(self, *, takes_it: bool = True, begun: Sequence[int] = ()) -> None:
        self.takes_it = takes_it
        self.begun = begun
        self.asked: list[int] = []

    def before_last(self) -> None:
        assert not self.asked

    def has(self, step: int) -> bool:
        return step in self.begun

    def save_last(self, progress: Progress) -> bool:
        self.asked.append(progress.step)
        return self.takes_it

    def after_step(self, progress: Progress, step_s: float, total: object) -> AfterStep:
        return AfterStep(is_kept=True, adapted=Adapted(every=3, share=step_s))


class One:
    """All ranks, which are one."""

    def total(self, values: Sequence[float]) -> Sequence[float]:
        return values


def saving(disk: Disk, memory: Memory | None) -> Saving:
    parts: Any = (disk, memory, One().total, Meters(), disk.looks_lost)
    return Saving(*parts)


def end(disk: Disk, memory: Memory | None, *, is_stopped: bool = False) -> Ending:
    return saving(disk, memory).end(LAST, is_stopped=is_stopped)


@pytest.mark.parametrize(("is_stopped", "state"), [(False, "done"), (True, "stopped")])
def test_what_is_on_disk_is_not_asked_of_memory(is_stopped: bool, state: str) -> None:
    memory = Memory()
    ending = end(Disk(has_it=True), memory, is_stopped=is_stopped)
    assert (ending.outcome.state, ending.outcome.step) == (state, 7)
    assert (ending.kept, ending.is_stopped, ending.is_as_asked) == ("disk", is_stopped, True)
    assert not memory.asked


def test_what_no_disk_takes_stays_in_memory_and_is_marked() -> None:
    disk, memory = Disk(has_it=False), Memory()
    ending = end(disk, memory)
    assert (ending.kept, ending.is_as_asked, disk.marked, memory.asked) == (
        "memory",
        False,
        [7],
        [7],
    )
    assert "no space" in ending.outcome.reason
    assert "/memory" in ending.outcome.reason


@pytest.mark.parametrize("memory", [None, Memory(takes_it=False)])
def test_what_is_nowhere_is_lost(memory: Memory | None) -> None:
    disk = Disk(has_it=False)
    ending = end(disk, memory)
    assert (ending.kept, ending.outcome.state, disk.marked) == ("nowhere", "failed", [])


@pytest.mark.parametrize(("takes_it", "kept"), [(True, "disk"), (False, "memory")])
def test_a_folder_that_is_lost_is_written_to_again(takes_it: bool, kept: str) -> None:
    ending = end(Disk(has_it=False, is_lost=True, takes_it=takes_it), Memory())
    assert (ending.kept, ending.outcome.state, ending.is_as_asked) == (kept, "stopped", False)


def test_without_snapshots_no_step_is_kept() -> None:
    assert saving(Disk(has_it=True), None).after_step(LAST, 0.5) == AfterStep(is_kept=False)
    after = saving(Disk(has_it=True), Memory()).after_step(LAST, 0.5)
    assert after.adapted == Adapted(every=3, share=0.5)


def test_a_copy_that_is_under_way_is_not_waited_for_by_who_goes_on_elsewhere() -> None:
    memory = Memory(begun=[7])
    assert saving(Disk(has_it=False), memory).keep_for_next(LAST)
    assert not memory.asked


@pytest.mark.parametrize("takes_it", [True, False])
def test_a_step_that_was_left_out_is_kept_for_who_goes_on_elsewhere(takes_it: bool) -> None:
    memory = Memory(takes_it=takes_it, begun=[6])
    assert saving(Disk(has_it=False), memory).keep_for_next(LAST) == takes_it
    assert memory.asked == [7]


def test_without_snapshots_nobody_goes_on_elsewhere() -> None:
    assert not saving(Disk(has_it=False), None).keep_for_next(LAST)
