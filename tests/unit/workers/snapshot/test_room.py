from __future__ import annotations

import errno
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.run_folder.paths import RunPaths, SnapshotPaths
from bundlerun.workers.snapshot import room as snapshot_folder
from bundlerun.workers.snapshot.mark import Mark, read_mark, set_mark
from bundlerun.workers.snapshot.piece import Layout, Spec
from bundlerun.workers.snapshot.room import GRACE_S, SnapshotFolder, SnapshotRoom, sweep
from bundlerun.workers.state.checkpoint import Checkpoints
from tests.unit.workers.state.checkpoint_tools import write

LAYOUT = Layout.of({"a": Spec("float32", (1000, 250))})  # 1 MB
PLENTY = 1 << 40


def paths_in(root: Path, run: str = "run") -> SnapshotPaths:
    return SnapshotPaths(root=root, uid=os.getuid(), run=run, node_name="node/0")


@contextmanager
def living(paths: SnapshotPaths) -> Iterator[None]:
    """Another process that holds the lock of a run."""
    up, tell = os.pipe()
    pid = os.fork()
    if not pid:
        SnapshotFolder(paths)
        os.write(tell, b"!")
        time.sleep(60)
        os._exit(0)
    os.read(up, 1)
    try:
        yield
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)


def dead(paths: SnapshotPaths, age_s: float) -> Path:
    """What a run left that ended badly so long ago."""
    with living(paths):
        (paths.folder / "x.piece").write_bytes(b"state")
    then = time.time() - age_s
    os.utime(paths.lock(paths.folder), (then, then))
    return paths.folder


def test_leftovers_of_dead_runs_are_swept(tmp_path: Path) -> None:
    old = dead(paths_in(tmp_path, "old"), GRACE_S + 60)
    young = dead(paths_in(tmp_path, "young"), GRACE_S - 60)
    with living(paths_in(tmp_path, "living")):
        os.utime(paths_in(tmp_path, "living").lock(paths_in(tmp_path, "living").folder), (0, 0))
        own = SnapshotFolder(paths_in(tmp_path))
        assert sweep(own.paths) == 1
        assert not old.exists()
        assert young.exists()
        assert paths_in(tmp_path, "living").folder.exists()
        assert own.paths.folder.exists()
        assert sweep(own.paths, grace_s=0) == 1
        assert not young.exists()
        assert paths_in(tmp_path, "living").folder.exists()


def test_what_is_on_no_disk_is_told_and_not_swept(
    memory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = dead(paths_in(memory / "shm", "kept"), GRACE_S + 60)
    set_mark(kept, Mark(run_dir="/runs/mine", step=12))
    room = SnapshotRoom.of("run", "node", "")
    room.sweep()
    assert kept.exists()
    assert sweep(paths_in(memory / "shm"), grace_s=0) == 0
    for text in (f"{kept} (0.0 MB) keeps step 12", "/runs/mine", "start that run again", "rm -r"):
        assert text in caplog.text
    own = SnapshotRoom.of("kept", "node/0", "")  # its own run, which has come to a good end
    assert read_mark(kept) is not None
    own.unmark()
    assert read_mark(kept) is None
    own.give_up()
    own.close()
    assert not kept.exists()


@pytest.mark.parametrize(("step", "is_kept"), [(11, True), (12, False), (13, False)])
def test_a_mark_counts_until_its_run_has_a_checkpoint_of_that_step_or_later(
    memory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, step: int, is_kept: bool
) -> None:
    run_dir = tmp_path / "runs"
    kept = dead(paths_in(memory / "shm", "kept"), GRACE_S + 60)
    set_mark(kept, Mark(run_dir=str(run_dir), step=12))
    write(Checkpoints(RunPaths(run_dir), keep=1), step)  # by bundle 0, on another node
    SnapshotRoom.of("run", "node", "").sweep()
    assert kept.exists() == is_kept
    assert ("keeps step 12" in caplog.text) == is_kept


def test_other_peoples_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("bundlerun-1-abc.lock", "bundlerun-snapshot-99999-abc-node", "other"):
        (tmp_path / name).mkdir()
    SnapshotFolder(paths_in(tmp_path))
    assert sweep(paths_in(tmp_path), grace_s=0) == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_the_last_one_out_removes_the_folder_where_the_run_is_over(tmp_path: Path) -> None:
    with living(paths_in(tmp_path)):
        SnapshotFolder(paths_in(tmp_path)).release(clean=True)
        assert paths_in(tmp_path).folder.exists()
    SnapshotFolder(paths_in(tmp_path)).release(clean=False)
    assert paths_in(tmp_path).folder.exists()
    SnapshotFolder(paths_in(tmp_path)).release(clean=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    paths = replace(paths_in(tmp_path), uid=os.getuid() + 1)
    with pytest.raises(NodeError, match="it belongs to somebody else; give another --snapshot-dir"):
        SnapshotFolder(paths)


def test_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    paths_in(tmp_path).folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NodeError, match="belongs to somebody else"):
        SnapshotFolder(paths_in(tmp_path))


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A shared memory and a temporary folder, each as big as `give_room` says."""
    for name in ("shm", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(snapshot_folder, "SHARED_MEMORY", tmp_path / "shm")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path


def give_room(monkeypatch: pytest.MonkeyPatch, **num_bytes: int) -> None:
    def statvfs(path: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=num_bytes[Path(path).name], f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)


def test_pieces_go_to_shared_memory(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_room(monkeypatch, shm=PLENTY, tmp=PLENTY)
    room = SnapshotRoom.of("run", "node", "")
    slot = room.make_slot("t", "role", LAYOUT)
    assert slot.path.is_relative_to(memory / "shm")
    assert list(room.pieces()) == [slot.path]
    room.give_up()
    room.close()
    assert list((memory / "shm").iterdir()) == list((memory / "tmp").iterdir()) == []


def test_too_small_a_shared_memory_is_said_with_both_sizes(
    memory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    give_room(monkeypatch, shm=1_900_000, tmp=PLENTY)
    first = SnapshotRoom.of("run", "node", "")
    with caplog.at_level(logging.WARNING):
        slot = first.make_slot("t", "role", LAYOUT, num_slots=2)
    assert slot.path.is_relative_to(memory / "tmp")
    assert f"2.0 MB in {memory}/shm, which has 1.9 MB" in caplog.text
    assert f"they go to {memory}/tmp, which has 1099511.6 MB" in caplog.text
    other = SnapshotRoom.of("run", "node", "")
    assert list(other.pieces()) == [slot.path]
    for room in (other, first):
        room.give_up()
        room.close()
    assert not any((memory / "tmp").iterdir())


def test_no_room_anywhere_is_said_with_all_sizes(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_room(monkeypatch, shm=900_000, tmp=800_000)
    room = SnapshotRoom.of("run", "node", "")
    with pytest.raises(OSError, match=r"1\.0 MB in .*shm, which has 0\.9 MB, nor in .*0\.8 MB"):
        room.make_slot("t", "role", LAYOUT)


def test_a_given_folder_is_the_only_one(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = SnapshotRoom.of("run", "node", str(memory / "own" / "folder"))
    assert room.make_slot("t", "role", LAYOUT).path.is_relative_to(memory / "own" / "folder")
    give_room(monkeypatch, folder=1, shm=PLENTY, tmp=PLENTY)
    with pytest.raises(OSError, match="no room") as error:
        room.make_slot("t", "other", LAYOUT)
    assert error.value.errno == errno.ENOSPC


def test_dead_runs_make_room_at_once(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    young = dead(paths_in(memory / "shm", "young"), 1)

    def statvfs(path: Path) -> SimpleNamespace:
        return SimpleNamespace(f_bavail=0 if young.exists() else PLENTY, f_frsize=1)

    monkeypatch.setattr(os, "statvfs", statvfs)
    slot = SnapshotRoom.of("run", "node", "").make_slot("t", "role", LAYOUT)
    assert slot.path.is_relative_to(memory / "shm")
    assert not young.exists()


def test_a_machine_without_shared_memory_uses_the_temporary_folder(memory: Path) -> None:
    (memory / "shm").rmdir()
    slot = SnapshotRoom.of("run", "node", "").make_slot("t", "role", LAYOUT)
    assert slot.path.is_relative_to(memory / "tmp")
