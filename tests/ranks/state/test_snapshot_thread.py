"""What goes wrong in the thread that copies the state ends the run, at whatever step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from torch import Tensor

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.snapshots import Snapshots
from bundlerun.workers.train import main
from tests.e2e.test_runs import train_words


@pytest.mark.parametrize("step", [2, 5])  # 5: the last one
def test_an_error_in_the_thread_of_snapshots_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: int
) -> None:
    honest = Snapshots._copy_share

    def copy_share(
        self: Snapshots, progress: Progress, copy: DeviceCopy, tensors: Mapping[str, Tensor]
    ) -> float:
        if progress.step == step:
            raise ValueError("no copy of this")
        return honest(self, progress, copy, tensors)

    monkeypatch.setattr(Snapshots, "_copy_share", copy_share)
    with pytest.raises(ValueError, match="no copy of this"):
        main(train_words(tmp_path / "run", epochs=1, snapshot_steps=1))


def test_a_label_without_room_turns_snapshots_off_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("bundlerun.workers.snapshot.slot._LABEL_BYTES", 64)
    assert main(train_words(tmp_path / "run", epochs=1, snapshot_steps=1)) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no more snapshots" in line]
    assert len(lines) == 1
    assert "what is to be known of step 1 has no room" in lines[0]
