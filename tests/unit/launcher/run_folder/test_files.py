from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.rendezvous.token import ensure_token
from bundlerun.launcher.run_folder.files import create_text, write_text
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.outcome import Outcome, read_outcome, write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def no_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_where_there_are_no_links_one_of_two_is_first_and_its_file_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert create_text(path, "mine", mode=0o600)
    assert path.read_text() == "mine"
    assert path.stat().st_mode & 0o777 == 0o600
    assert not create_text(path, "too late")
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.usefixtures("no_links")
def test_a_file_that_nobody_may_meet_empty_is_not_made_where_there_are_no_links(
    tmp_path: Path,
) -> None:
    with pytest.raises(OSError):  # noqa: PT011 (one of several numbers)
        create_text(tmp_path / "file", "mine", may_be_met_empty=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_links")
def test_a_run_needs_no_links_for_its_folder_token_and_outcome(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    with Claim(paths, Holder.of_process("job", "a test"), print).take():
        assert [path.name for path in paths.claims.iterdir()] == ["000001.json"]
    assert Path(ensure_token(paths)).read_text()
    outcome = Outcome(state="failed", exit_code=1, reason="", step=4)
    write_outcome(paths, outcome, is_last_word=False)
    found = read_outcome(paths)
    assert found is not None
    assert found.step == 4


def test_a_folder_that_cannot_be_written_is_no_file_system_without_links(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        create_text(tmp_path / "away" / "file", "mine")


def test_two_processes_of_one_id_in_two_containers_may_write_a_file_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, sync, others = tmp_path / "file", os.fsync, ["the other's"]

    def sync_while_another_writes(descriptor: int) -> None:
        sync(descriptor)
        if others:
            write_text(file, others.pop())

    monkeypatch.setattr("os.fsync", sync_while_another_writes)
    write_text(file, "the first's")
    assert file.read_text() == "the first's"
    assert list(tmp_path.iterdir()) == [file]
