"""A run on a machine that has four times too much to do: nobody may be taken for dead."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.faults.job import PORT, Job, loopback_nodes, opened
from benchmarks.results.record import Check, Options
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "no false alarm while the processors are loaded four times over"
SLOTS = (2, 2)
MINUTES = 30.0
TIMES_OVER = 4


def run(options: Options) -> None:
    """Trains for a while next to busy processes, and counts what was taken for a failure."""
    minutes = options.minutes or MINUTES
    with tempfile.TemporaryDirectory(prefix="bundlerun-alarms-") as folder:
        job = Job(Path(folder), loopback_nodes(SLOTS), port=PORT)
        with opened(job):
            job.wait_for_ranks(sum(SLOTS), 120)
            first = job.tail.look()
            with busy(TIMES_OVER * (os.cpu_count() or 1)):
                until = time.monotonic() + 60 * minutes
                while time.monotonic() < until:
                    job.tail.look()
                    time.sleep(0.05)
            done, resumes = job.tail.look() - first, len(job.tail.resumes)
            rows = read_events(RunPaths(job.run_dir).events)
            alarms = [r for r in rows if name_of(r) in ("over", "rank silent", "rank stopped")]
            job.drain(120)
    print(f"{done} steps in {minutes:g} minutes, {resumes} restarts")
    for row in alarms:
        print(f"{row['node']}: {row['event']}: {row.get('why', '')}")
    options.record(
        "alarms",
        {"minutes": minutes, "steps": done, "restarts": resumes, "alarms": len(alarms)},
        [
            Check("restarts, at most", resumes, 0),
            Check("rounds over, ranks taken for silent or stopped, at most", len(alarms), 0),
        ],
    )


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that compute without end."""
    # Not forked: a fork would have this process's threads' locks, and its memory.
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_spin, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.join()


def _spin() -> None:
    while True:
        sum(range(100_000))
