"""Ranks for tests: forked from this process, so that none imports torch again."""

from __future__ import annotations

import gc
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cache
from pathlib import Path

import torch
from torch.distributed import FileStore, Store
from torch.overrides import get_overridable_functions, get_testing_overrides

from benchmarks.cluster.forked import rank_envs
from bundlerun.launcher.agreement.sources import own_digest
from bundlerun.workers.rank.env import RankEnv

RankMain = Callable[[RankEnv, Store], None]
STORE_TIMEOUT_S = 20.0


def free_port() -> int:
    """A port that nobody uses right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(
    devices_per_node: Sequence[int], main: RankMain, folder: Path, *, timeout_s: float = 60.0
) -> None:
    """Runs `main` on every rank; raises AssertionError with the tracebacks of those that fail."""
    failures = {r: text for r, text in outcomes(devices_per_node, main, folder, timeout_s).items()}
    assert not failures, "\n".join(f"rank {r}: {text}" for r, text in sorted(failures.items()))


def outcomes(
    devices_per_node: Sequence[int], main: RankMain, folder: Path, timeout_s: float
) -> dict[int, str]:
    """How the ranks that did not end well ended."""
    folder.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="round-", dir=folder))  # a store of its own
    envs = rank_envs(devices_per_node)
    _prepare()
    pids = {_fork(env, len(envs), main, folder): env.rank for env in envs}
    statuses = _wait(pids, timeout_s)
    found = {}
    for rank, status in statuses.items():
        if status != 0:
            trace = folder / f"rank{rank}.txt"
            found[rank] = trace.read_text() if trace.exists() else f"wait status {status}"
    return found


@cache
def _prepare() -> None:
    """Works out once what every rank would work out for itself."""
    own_digest()
    get_overridable_functions()
    get_testing_overrides()


def _fork(env: RankEnv, world_size: int, main: RankMain, folder: Path) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        # Else each rank's collections look through all that pytest has, and copy its pages.
        gc.freeze()
        torch.set_num_threads(1)
        store = FileStore(str(folder / "store"), world_size)
        store.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
        main(env, store)
        code = 0
    except BaseException:
        (folder / f"rank{env.rank}.txt").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def _wait(pids: dict[int, int], timeout_s: float) -> dict[int, int]:
    statuses: dict[int, int] = {}
    deadline = time.monotonic() + timeout_s
    waiting = dict(pids)
    while waiting:
        for pid in list(waiting):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                statuses[waiting.pop(pid)] = status
        if waiting and time.monotonic() > deadline:
            for pid in waiting:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise AssertionError(f"ranks {sorted(waiting.values())} hang after {timeout_s} s")
        time.sleep(0.01)
    return statuses
