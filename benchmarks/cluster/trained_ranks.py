"""The ranks of one node, forked here from a process that has torch, as an agent's fork server does.

They run the program that `bundlerun run` starts, and are ended once they have come far enough.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.process import die_with_parent
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers import train

POLL_S = 0.1
_LOOK_EVERY = 4
"""Polls between two looks at all pages, which take the kernel milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The most memory that a process had at once, bytes.

    Args:
        rss: resident, by the kernel's own counter (VmHWM): no moment is missed.
        others: of that, where it had about the most: what counts for other processes, by their
            number, and pages of files, which all programs of the machine share.
    """

    rss: int
    others: int

    @property
    def own(self) -> int:
        """Proportional: a page that n processes map counts 1/n."""
        return self.rss - self.others


def peaks_of_run(
    options: Sequence[str], num_ranks: int, run_dir: Path, *, steps: int, timeout_s: float
) -> list[Peak]:
    """The peak of each rank of a run, in its first steps.

    Args:
        options: of the program, without --run-dir.
        num_ranks: of the one node.
        run_dir: of the run, in an empty folder; what the ranks say is beside it.
        steps: after which they are ended.
        timeout_s: longest wait for that.

    Raises:
        RuntimeError: a rank ended, or took too long; with what it has said.
    """
    output = run_dir.with_suffix(".txt")
    environ = {
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "GROUP_RANK": "0",
        "GROUP_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
    }
    pids: list[int] = []
    # As an agent does before its ranks: a collection of theirs leaves shared pages alone.
    gc.freeze()
    # The snapshots of a run that is killed stay: those of many models fill the machine's memory.
    with tempfile.TemporaryDirectory(prefix="bundlerun-peaks-", dir="/dev/shm") as memory:
        argv = [f"--run-dir={run_dir}", f"--snapshot-dir={memory}", "--threads=1", *options]
        try:
            for rank in range(num_ranks):
                own = {**environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                pids.append(_fork(argv, own, output))
            return _watched(pids, RunPaths(run_dir), output, steps=steps, timeout_s=timeout_s)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _watched(
    pids: Sequence[int], paths: RunPaths, output: Path, *, steps: int, timeout_s: float
) -> list[Peak]:
    shared = [(0, 0)] * len(pids)
    until = time.monotonic() + timeout_s
    number = 0
    while True:
        has_ended = any(os.waitpid(pid, os.WNOHANG)[0] for pid in pids)
        if has_ended or time.monotonic() > until:
            said = output.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{'a rank ended' if has_ended else 'too slow'}:\n{said}")
        is_over = _steps_of(paths.metrics) >= steps
        if number % _LOOK_EVERY == 0 or is_over:
            looks = [_looked(pid) for pid in pids]
            shared = [max(pair) for pair in zip(shared, looks, strict=True)]
        if is_over:
            most = [_of_status(pid, "VmHWM") for pid in pids]
            return [Peak(rss=r, others=s) for r, (_, s) in zip(most, shared, strict=True)]
        number += 1
        time.sleep(POLL_S)


def _steps_of(file: Path) -> int:
    rows = read_rows(file) if file.exists() else []
    return sum(row.get("kind") == "step" for row in rows)


def _looked(pid: int) -> tuple[int, int]:
    """Bytes that are resident now, and how many of them are not this process's own."""
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        key, _, value = line.partition(":")
        found[key] = int(value.split()[0]) << 10
    return found["Rss"], found["Rss"] - found["Pss_Anon"] - found["Pss_Shmem"]


def own_anonymous() -> int:
    """Bytes of this process that are no file's: what ranks are forked with."""
    return _of_status(os.getpid(), "RssAnon")


def _of_status(pid: int, key: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) << 10
    raise RuntimeError(f"no {key} of process {pid}")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def _fork(argv: Sequence[str], environ: Mapping[str, str], output: Path) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with_parent(parent)
        with output.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environ)
        code = train.main(argv)
    finally:
        os._exit(code)
