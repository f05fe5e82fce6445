"""A rank is killed, then one is frozen: how soon the next step is finished, and how many again.

Separately: how long a process that has work on the GPU takes to be gone.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.cluster.waiting import comes_true
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.forked import Fork, in_fork
from benchmarks.gpu.jobs import SMALL, Job
from bundlerun.launcher.run_folder.history import read_rows

_LIMIT_S = 40.0
_AT_STEP = 20
_NUM_RANKS = 2
_RESNET = (
    "--model=resnet50",
    "--augment=none",
    "--batch-size=64",
    "--microbatch-size=32",
    "--no-validate",
)
_JOB = (
    "--shape=1",
    "--transport=cpu",
    "--snapshot-steps=1",
    "--synthetic-samples=64000",
    "--epochs=1000",
)
_FAULTS: Mapping[str, tuple[signal.Signals, float]] = {
    "killed": (signal.SIGKILL, 3.0),
    "frozen": (signal.SIGSTOP, 5.0),
}
_HELD_GIB = 40
_SLEEPS = 60
_CYCLES = 1_000_000_000


def run(bench: Bench) -> None:
    """Restarts with what there is, then processes that end with work on the GPU."""
    _restarts(bench, "rank", (), _FAULTS)
    most = {"killed": (signal.SIGKILL, 1.0)}
    _restarts(bench, "rank, --standby", ("--standby",), most)
    for name, act in (("os._exit", _leave), ("SIGKILL", _kill)):
        what = f"{name}, {_SLEEPS // 2} s of work pending, {_HELD_GIB} GiB held: until it is gone"
        if bench.is_gpu:
            bench.on_gpu.at_most(what, _gone_after_s(bench, act), 2, "s")
        else:
            bench.on_gpu.cannot(what, "<= 2 s")
    if bench.is_gpu:
        free, capacity = in_fork(partial(_free_and_all, bench.device))
        bench.on_gpu.at_least("memory that is free again, of all", free / capacity, 0.9)


def _restarts(
    bench: Bench,
    who: str,
    options: Sequence[str],
    faults: Mapping[str, tuple[signal.Signals, float]],
) -> None:
    model = bench.sized(_RESNET, SMALL)
    job = Job(bench, f"restart{len(options)}", (*model, *_JOB, *options), num_ranks=_NUM_RANKS)
    limit_s = bench.limit_s(_LIMIT_S)
    job.wait_for_step(_AT_STEP, limit_s)
    if "--standby" in options:
        _wait_for_standbys(bench, job, limit_s)
    for name, (number, most_s) in faults.items():
        num_before = len(_restart_rows(job))
        hit_at = time.time()
        os.kill(job.rank_pid(1), number)
        if not comes_true(lambda before=num_before: _has_gone_on(job, before), limit_s, 0.005):  # type: ignore[misc]
            raise TimeoutError(f"a {name} {who}: no step within {limit_s:g} s")
        lost, source, next_at = _after(job, num_before)
        bench.said.at_most(f"{who} {name}: steps done again", lost, 1)
        bench.said.holds(f"{who} {name}: state from", source == "snapshot", source, "snapshot")
        bench.on_gpu.at_most(f"{who} {name}: to the next step", next_at - hit_at, most_s, "s")
        for phase, seconds in job.last_recovery().items():
            bench.on_gpu.figure(f"{who} {name}: until {phase}", seconds, "s")
    job.stop(limit_s)


def _wait_for_standbys(bench: Bench, job: Job, limit_s: float) -> None:
    """Returns once there is one for each rank, or it is said that there will be none."""

    def is_told() -> bool:
        return len(job.events("standby ready")) >= _NUM_RANKS or bool(job.events("standby missing"))

    comes_true(is_told, limit_s)
    ready = job.events("standby ready")
    what = "standbys that are ready"
    bench.said.holds(what, len(ready) >= _NUM_RANKS, str(len(ready)), str(_NUM_RANKS))
    for row in ready[:1]:
        bench.on_gpu.figure("a standby warms up", float(row["took_s"]), "s")


def _rows(job: Job) -> list[dict[str, Any]]:
    return [row for row in read_rows(job.paths.metrics) if row.get("kind") in ("step", "restart")]


def _restart_rows(job: Job) -> list[int]:
    """Where in the history the restarts are."""
    return [at for at, row in enumerate(_rows(job)) if row["kind"] == "restart"]


def _has_gone_on(job: Job, num_before: int) -> bool:
    found = _restart_rows(job)
    return len(found) > num_before and len(_rows(job)) > found[-1] + 1


def _after(job: Job, num_before: int) -> tuple[int, str, float]:
    """Steps that were done again, where the state came from, and when the next step was done."""
    rows, at = _rows(job), _restart_rows(job)[num_before]
    # Steps count from 0, the state from the steps that are in it.
    lost = int(rows[at - 1]["step"]) + 1 - int(rows[at]["step"])
    return lost, str(rows[at]["source"]), float(rows[at + 1]["time"])


# --- processes that end


def _gone_after_s(bench: Bench, act: Callable[[int, int], None]) -> float:
    """Seconds from the end that `act` brings about to the moment the process is gone."""
    ready, is_ready = os.pipe()
    go, is_gone = os.pipe()
    holder = Fork(partial(_hold, bench.device, is_ready, go))
    try:
        os.close(is_ready)
        if not os.read(ready, 1):
            raise RuntimeError("the process could not take the memory; the log may say why")
        start = time.monotonic()
        act(holder.pid, is_gone)
        # It is there to be waited for: `forget` below does that.
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        return time.monotonic() - start
    finally:
        for descriptor in (ready, go, is_gone):
            os.close(descriptor)
        holder.forget()


def _hold(device: torch.device, is_ready: int, go: int) -> None:
    torch.cuda.set_device(device)
    held = torch.empty(_HELD_GIB << 30, dtype=torch.uint8, device=device)
    for _ in range(_SLEEPS):
        torch.cuda._sleep(_CYCLES)
    os.write(is_ready, b"1")
    os.read(go, 1)
    del held
    os._exit(0)


def _leave(_: int, is_gone: int) -> None:
    os.write(is_gone, b"1")


def _kill(pid: int, _: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _free_and_all(device: torch.device) -> tuple[int, int]:
    return torch.cuda.mem_get_info(device)
