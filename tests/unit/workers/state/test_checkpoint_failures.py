"""Checkpoints through kills at every operation, stragglers and full disks."""

import errno
import io
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.run_folder.checkpoints import checkpoint_folders
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.state.checkpoint import Checkpoints
from tests.unit.workers.state.checkpoint_tools import newest_step, progress, write

# --- crashes ------------------------------------------------------------------------------------


ALLOCATING = ("replace", "fsync", "mkdir")
CHANGING = (*ALLOCATING, "unlink", "rmdir")


class WatchedFile(io.FileIO):
    """A file each of whose writes is an operation of its own; one that fails is half done."""

    def __init__(self, path: Path, happens: Callable[[], None]) -> None:
        super().__init__(path, "w")
        self._happens = happens

    def write(self, data: Any, /) -> int:
        half = len(data) // 2
        done = super().write(data[:half])
        self._happens()
        return done + super().write(data[half:])


@contextmanager
def trouble_at(
    call: int, names: Sequence[str], fail: Callable[[], None], *, stays: bool = False
) -> Iterator[list[int]]:
    """`fail` on the `call`-th operation of these and of writes, before it is done.

    Args:
        stays: on each later one too.
    """
    made = [0]
    real_open = Path.open

    def happens() -> None:
        made[0] += 1
        if made[0] == call or (stays and made[0] > call):
            fail()

    def wrap(name: str) -> Callable[..., object]:
        real = getattr(os, name)

        def wrapped(*args: object, **kwargs: object) -> object:
            happens()
            return real(*args, **kwargs)

        return wrapped

    def watched_open(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not mode.startswith("w"):
            return real_open(path, mode, *args, **kwargs)
        file = WatchedFile(path, happens)
        return file if "b" in mode else io.TextIOWrapper(file, "utf-8", write_through=True)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(os, name, wrap(name))
        patch.setattr(Path, "open", watched_open)
        yield made


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_and_die(action: Callable[[], object], call: int) -> bool:
    """Runs `action` in a child that is killed at its `call`-th operation; whether it was."""
    child = os.fork()
    if child == 0:
        try:
            with trouble_at(call, CHANGING, die):
                action()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def write_and_prune(checkpoints: Checkpoints, step: int) -> None:
    write(checkpoints, step)
    checkpoints.prune()


@pytest.mark.parametrize("step", [2, 3], ids=["over one of the same step", "a new step"])
def test_a_kill_at_any_operation_leaves_a_good_checkpoint(paths: RunPaths, step: int) -> None:
    template = paths.root.with_name("template")
    before = Checkpoints(RunPaths(template), keep=2)
    write(before, 1)
    write(before, 2)
    call, seen = 1, set()
    while True:
        shutil.rmtree(paths.root, ignore_errors=True)
        shutil.copytree(template, paths.root)
        killed = run_and_die(lambda: write_and_prune(Checkpoints(paths, keep=1), step), call)

        after = Checkpoints(paths, keep=1, token="next")
        after.sweep()
        newest = newest_step(after)
        assert newest in (2, step)
        seen.add(newest)
        assert {f.name for f in paths.checkpoints.iterdir()} == {
            f.name for f in checkpoint_folders(paths)
        }
        assert all(c.step in (1, 2, 3) for c in after.candidates())
        assert len(after.candidates()) == len(checkpoint_folders(paths))
        if not killed:
            break
        call += 1
    assert call > 15
    assert seen == {2, step}


def test_a_folder_that_cannot_be_listed_is_named(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable(folder: Path) -> Iterator[Path]:
        raise PermissionError(errno.EACCES, "Permission denied")

    paths.checkpoints.mkdir(parents=True)
    monkeypatch.setattr(Path, "iterdir", unreadable)
    with pytest.raises(CheckpointError, match=r"cannot clear .*checkpoints.: Permission denied"):
        Checkpoints(paths, 1).sweep()


def test_the_sweep_itself_may_be_killed(paths: RunPaths) -> None:
    call = 1
    while True:
        shutil.rmtree(paths.root, ignore_errors=True)
        checkpoints = Checkpoints(paths, keep=1)
        folder = write(checkpoints, 1)
        folder.rename(folder.with_name(folder.name + ".old"))
        checkpoints.write_part(2, "stage-0", {"model.a": torch.zeros(3)})
        if not run_and_die(checkpoints.sweep, call):
            break
        checkpoints.sweep()
        assert [f.name for f in paths.checkpoints.iterdir()] == [folder.name]
        assert newest_step(checkpoints) == 1
        call += 1
    assert call > 2


def test_the_sweep_leaves_strange_files_alone(checkpoints: Checkpoints, paths: RunPaths) -> None:
    write(checkpoints, 1)
    for name in ("notes.tmp-1", "step-1.old", "mine"):
        (paths.checkpoints / name).mkdir()

    checkpoints.sweep()

    assert {f.name for f in paths.checkpoints.iterdir()} == {
        "step-000000001",
        "notes.tmp-1",
        "step-1.old",
        "mine",
    }


def test_a_straggler_of_an_earlier_round_cannot_write_into_the_new_one(paths: RunPaths) -> None:
    old, new = (Checkpoints(paths, keep=1, token=token) for token in ("1", "2"))
    part = new.write_part(5, "stage-0", {"model.a": torch.ones(4)})
    old.write_part(5, "stage-0", {"model.a": torch.zeros(9)})

    new.commit(5, [part], progress(5))

    assert newest_step(new) == 5


# --- full disks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("at", ["write", "fsync", "manifest", "rename"])
def test_a_full_disk_leaves_the_older_checkpoint_and_nothing_else(
    checkpoints: Checkpoints, paths: RunPaths, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(checkpoints, 1)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*args: object, **kwargs: object) -> None:
        raise full

    if at == "write":
        monkeypatch.setattr("bundlerun.workers.state.tensor_file._bytes_of", fail)
    elif at == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif at == "manifest":
        monkeypatch.setattr("bundlerun.workers.state.checkpoint._write_text", fail)
    else:
        monkeypatch.setattr(os, "replace", fail)

    with pytest.raises(CheckpointError, match=r"No space left on device; \d+\.\d MB are free"):
        write(checkpoints, 2)
    if at in ("write", "fsync"):
        assert not list(paths.checkpoints.rglob("stage-0.safetensors"))[1:]
    checkpoints.abandon(2)
    monkeypatch.undo()

    assert [f.name for f in paths.checkpoints.iterdir()] == ["step-000000001"]
    assert newest_step(checkpoints) == 1
    write(checkpoints, 3)
    assert newest_step(checkpoints) == 3


def no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stays", [False, True], ids=["for a moment", "for good"])
@pytest.mark.parametrize("step", [2, 3], ids=["over one of the same step", "a new step"])
def test_a_disk_that_fills_at_any_write_loses_nothing(
    paths: RunPaths, step: int, stays: bool
) -> None:
    template = paths.root.with_name("template")
    before = Checkpoints(RunPaths(template), keep=2)
    write(before, 1)
    write(before, 2)
    call = 1
    while True:
        shutil.rmtree(paths.root, ignore_errors=True)
        shutil.copytree(template, paths.root)
        checkpoints = Checkpoints(paths, keep=1)
        failed = False
        with trouble_at(call, ALLOCATING, no_space, stays=stays) as made:
            try:
                write_and_prune(checkpoints, step)
            except CheckpointError as exc:
                failed = "No space left on device" in str(exc)
                checkpoints.abandon(step)

        # Where names can be changed again, nobody has to start anew first to find the older one.
        good = {2, step} if failed else {step}
        assert stays or newest_step(checkpoints) in good, call
        assert not list(paths.checkpoints.glob("*.tmp-0"))
        after = Checkpoints(paths, keep=1, token="next")
        after.sweep()
        assert newest_step(after) in good, call
        assert len(after.candidates()) == len(list(paths.checkpoints.iterdir()))
        if made[0] < call:
            break
        call += 1
    assert call > 10


def test_a_file_that_may_not_grow_is_a_full_disk(checkpoints: Checkpoints, paths: RunPaths) -> None:
    resource = pytest.importorskip("resource", reason="no limits on this system")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(CheckpointError, match="MB are free"):
            checkpoints.write_part(2, "stage-0", {"model.a": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)

    assert not [path for path in paths.checkpoints.rglob("*") if path.is_file()]


def test_a_folder_that_is_not_shared_is_said(checkpoints: Checkpoints, tmp_path: Path) -> None:
    other = Checkpoints(RunPaths(tmp_path / "other node"), keep=1)
    mine = checkpoints.write_part(1, "stage-0", {"model.a": torch.zeros(3)})
    theirs = other.write_part(1, "stage-1", {"model.b": torch.zeros(3)})

    with pytest.raises(CheckpointError, match="--run-dir must be a folder that all nodes share"):
        checkpoints.commit(1, [mine, theirs], progress(1))

    assert checkpoints.newest() is None
