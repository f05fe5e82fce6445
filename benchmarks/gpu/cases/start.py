"""A rank forked from a process that has loaded torch starts CUDA; from the command to the steps."""

from __future__ import annotations

import os
import struct
import time

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.jobs import SMALL, Job

_LIMIT_S = 60.0
_RESNET = (
    "--model=resnet50",
    "--batch-size=256",
    "--microbatch-size=32",
    "--synthetic-samples=256",
    "--no-validate",
)


def run(bench: Bench) -> None:
    """The context alone, then a whole run."""
    bench.on_gpu.at_most("context in a forked rank", _context_s(bench), 0.5, "s")
    start = time.time()
    options = bench.sized(_RESNET, SMALL)
    job = Job(bench, "start", (*options, "--shape=1", "--max-steps=3", "--epochs=3"))
    code = job.wait(bench.limit_s(_LIMIT_S))
    # CUDA refuses to work in the fork of a process that has used it.
    is_poisoned = "forked subprocess" in job.output
    bench.said.holds(
        "run --shape 1, three steps",
        code == 0 and not is_poisoned and len(job.losses()) == 3,
        f"code {code}, {len(job.losses())} steps" + ", started CUDA too early" * is_poisoned,
        "code 0, 3 steps",
    )
    if code:
        return
    steps = job.steps()
    bench.on_gpu.figure("command to the end of the first step", steps[0]["time"] - start, "s")
    forked, met = (job.events(name)[0] for name in ("starts", "met"))
    bench.on_gpu.figure("rank's start to all met", met["t_s"] - forked["t_s"], "s")
    bench.on_gpu.figure("a rank's age where its main begins", forked["age_s"], "s")


def _context_s(bench: Bench) -> float:
    """Seconds until a fork of this process has done its first work on the device."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            start = time.perf_counter()
            torch.ones(1, device=bench.device)
            bench.drain()
            os.write(writing, struct.pack("d", time.perf_counter() - start))
        finally:
            os._exit(0)
    os.close(writing)
    try:
        data = os.read(reading, 8)
    finally:
        os.close(reading)
        os.waitpid(pid, 0)
    if not data:
        raise RuntimeError("a forked process could not use the device")
    return float(struct.unpack("d", data)[0])
