from __future__ import annotations

import pytest

from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED, EXIT_RESUMABLE
from bundlerun.launcher.run_folder.outcome import State
from bundlerun.workers.rank.arrival.session import End
from bundlerun.workers.state.ending import Kept, end_for_spares, outcome_of


@pytest.mark.parametrize(
    ("is_stopped", "kept", "state", "code", "end"),
    [
        (False, "disk", "done", EXIT_DONE, "safe"),
        (True, "disk", "stopped", EXIT_RESUMABLE, "stopped"),
        (False, "memory", "stopped", EXIT_RESUMABLE, "unsaved"),
        (True, "memory", "stopped", EXIT_RESUMABLE, "unsaved"),
        (False, "nowhere", "failed", EXIT_FAILED, "failed"),
        (True, "nowhere", "stopped", EXIT_RESUMABLE, "unsaved"),
    ],
)
def test_only_what_is_on_disk_is_done(
    is_stopped: bool, kept: Kept, state: State, code: int, end: End
) -> None:
    found = outcome_of(
        7, is_stopped=is_stopped, has_lost_folder=False, kept=kept, why="no room", where="/shm/x"
    )
    assert (found.state, found.exit_code, found.step) == (state, code, 7)
    assert end_for_spares(found, kept) == end
    assert ("no room" in found.reason and "/shm/x" in found.reason) == (kept == "memory")


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_run_that_lost_its_folder_is_never_done(is_stopped: bool) -> None:
    found = outcome_of(
        7, is_stopped=is_stopped, has_lost_folder=True, kept="disk", why="", where=""
    )
    assert (found.state, found.exit_code) == ("stopped", EXIT_RESUMABLE)
    assert "deleted or renamed" in found.reason
    assert "a checkpoint of step 7" in found.reason
