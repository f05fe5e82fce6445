from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.corruption.marks import (
    CorruptionMark,
    era_of,
    is_trusted,
    read_marks,
    set_aside,
    trusted_step,
    write_mark,
)
from bundlerun.launcher.run_folder.paths import RunPaths

MARK = CorruptionMark(
    era=0, stage=1, step=90, verified=48, kind="buffer", name="norm.running_var", culprits=("c",)
)


def with_checkpoints(folder: Path, *steps: int) -> RunPaths:
    paths = RunPaths(folder)
    for step in steps:
        paths.checkpoint(step).mkdir(parents=True)
    return paths


def names_left(paths: RunPaths) -> list[str]:
    return sorted(folder.name for folder in paths.checkpoints.iterdir())


def trusted_left(paths: RunPaths) -> list[str]:
    return [name for name in names_left(paths) if not name.startswith("suspect-")]


def test_a_run_without_marks_is_in_its_first_era_and_all_is_trusted(tmp_path: Path) -> None:
    paths = with_checkpoints(tmp_path, 40)
    assert read_marks(paths) == ()
    assert (era_of(()), trusted_step(())) == (0, -1)
    assert is_trusted(99, 0, ())
    assert set_aside(paths, ()) == []
    assert names_left(paths) == ["step-000000040"]


def test_marks_are_read_as_they_were_written_and_one_that_is_torn_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = RunPaths(tmp_path)
    marks = (MARK, replace(MARK, era=1, stage=0), replace(MARK, era=10))
    for mark in (*marks, marks[0]):  # each replica writes it
        write_mark(paths, mark)
    paths.corruption_mark(2, 0).write_text('{"era": 2', encoding="utf-8")
    assert read_marks(paths) == marks
    assert "cannot read" in caplog.text
    assert era_of(marks) == 11


def test_states_of_the_era_and_those_before_it_are_trusted_until_the_verified_step() -> None:
    marks = (MARK, replace(MARK, stage=0, verified=46), replace(MARK, era=1, verified=70))
    assert trusted_step(marks) == 70
    assert is_trusted(46, 0, marks)
    assert not is_trusted(47, 0, marks)  # one stage found more
    assert is_trusted(70, 1, marks)
    assert not is_trusted(71, 1, marks)
    assert is_trusted(400, 2, marks)


def test_checkpoints_that_are_not_trusted_are_set_aside_once(tmp_path: Path) -> None:
    paths = with_checkpoints(tmp_path, 40, 48, 60, 80)
    write_mark(paths, MARK)
    assert set_aside(paths, read_marks(paths)) == [60, 80]
    assert trusted_left(paths) == ["step-000000040", "step-000000048"]
    assert "suspect-step-000000060" in names_left(paths)
    # The next era has its own of that step, which another start leaves alone.
    paths.checkpoint(60).mkdir()
    assert set_aside(paths, read_marks(paths)) == []
    assert "step-000000060" in names_left(paths)
    # Found again: what was set aside before makes room.
    write_mark(paths, replace(MARK, era=1, verified=50))
    assert set_aside(paths, read_marks(paths)) == [60]


def test_a_start_that_is_killed_between_two_checkpoints_is_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = with_checkpoints(tmp_path, 40, 60, 80)
    write_mark(paths, MARK)
    honest = Path.rename

    def killed(self: Path, target: Path) -> Path:
        if self.name.endswith("60"):
            raise KeyboardInterrupt
        return honest(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            set_aside(paths, read_marks(paths))
    assert set_aside(paths, read_marks(paths)) == [60]
    assert trusted_left(paths) == ["step-000000040"]
