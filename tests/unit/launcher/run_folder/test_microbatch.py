from __future__ import annotations

import errno
from pathlib import Path

import pytest

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.run_folder import microbatch
from bundlerun.launcher.run_folder.microbatch import keep_samples, kept_samples
from bundlerun.launcher.run_folder.paths import RunPaths


def test_what_is_kept_is_for_one_batch_size(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    assert kept_samples(str(paths.root), 256) == 0
    keep_samples(paths, 256, 8)
    assert kept_samples(str(paths.root), 256) == 8
    assert kept_samples(str(paths.root), 128) == 0
    for damaged in ('{"batch_size": 256}', "[]", "7", '{"batch_size": 256, "samples": 0}', ""):
        paths.microbatch.write_text(damaged)
        assert kept_samples(str(paths.root), 256) == 0


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(NodeError, match="cannot write --run-dir"):
        keep_samples(RunPaths(tmp_path / "run"), 256, 8)


def test_a_full_disk_is_told_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(microbatch, "write_text", full)
    keep_samples(RunPaths(tmp_path / "run"), 256, 8)
    assert "--microbatch-size 8" in caplog.text
