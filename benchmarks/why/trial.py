"""One cause planted into a small run: what is said of it, and when."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.cluster.hosts import Wire, open_hosts
from benchmarks.faults.job import Job, host_nodes, loopback_nodes, opened
from benchmarks.why import planted
from benchmarks.why.causes import Case
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.outcome import lost_node
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.hang_words import hang_text
from bundlerun.launcher.why.pace import Pace
from bundlerun.launcher.why.pace_words import pace_text
from bundlerun.launcher.why.view import Stood, View, view_of

LIMIT_S = 10.0
"""--timeout-s of the runs."""
WORK: dict[str, object] = {
    "recipe": planted.__file__,
    "batch-size": 32,
    "microbatch-size": 4,
    "epochs": 1000,
    "loader-workers": 0,
    "seed": 1,
}
_MEASURED_S = 3.0
_HOGGED_S = 45.0
_NUM_HOGS = 12
_LONGEST_S = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a case.

    told: in words. is_named: whether that is what was planted. after_s: from the limit, or from
    what was done, to the verdict; None where the run was only slow.
    """

    told: str
    is_named: bool
    after_s: float | None = None


def groups_of(cases: Sequence[Case]) -> list[list[Case]]:
    """Cases that one run can have one after the other."""
    found: dict[str, list[Case]] = {}
    for case in cases:
        key = repr((case.options, case.environ, case.mbit_per_s, case.slots))
        found.setdefault(key, []).append(case)
    # What ends a node or pins a rank comes last.
    return [
        sorted(group, key=lambda case: case.outside in ("hog", "cut")) for group in found.values()
    ]


def try_group(cases: Sequence[Case]) -> Iterator[tuple[Case, Result]]:
    """Plants one after the other in one run, and asks why each time."""
    with tempfile.TemporaryDirectory(prefix="bundlerun-why-") as name, ExitStack() as stack:
        folder = Path(name)
        job = job_of(cases[0], folder, stack)
        with opened(job):
            for case in cases:
                job.wait_for_ranks(sum(case.slots), 120)
                yield case, _try(case, job, folder / "plant")


def job_of(case: Case, folder: Path, stack: ExitStack, limit_s: float = LIMIT_S) -> Job:
    """The run, not started yet."""
    hosts = None
    if case.mbit_per_s:
        hosts = stack.enter_context(open_hosts(len(case.slots), Wire(mbit_per_s=case.mbit_per_s)))
    nodes = loopback_nodes(case.slots) if hosts is None else host_nodes(hosts, case.slots)
    environ = {
        planted.FILE_VARIABLE: str(folder / "plant"),
        # Two agents of one machine would pin the ranks of one of them to the same cores.
        "BUNDLERUN_AFFINITY": "false",
        **case.environ,
    }
    options = {"timeout-s": limit_s, "checkpoint-steps": 0, **case.options}
    return Job(
        folder,
        nodes,
        port=free_port(),
        hosts=hosts,
        options=options,
        environ=environ,
        program="benchmarks.why.agent",
        work=WORK,
    )


def free_port() -> int:
    """One that no other benchmark of this machine keeps."""
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def _try(case: Case, job: Job, plant: Path) -> Result:
    try:
        if case.is_hang:
            return _try_hang(case, job, plant)
        with _hogs(job) if case.outside == "hog" else nullcontext():
            _strike(case, job, plant)
            return _try_slow(case, job)
    finally:
        plant.unlink(missing_ok=True)


def _look(job: Job) -> View:
    return view_of(RunPaths(job.run_dir), now_s=time.time())


def _try_slow(case: Case, job: Job) -> Result:
    """Looks at the first epoch that the cause was there for from the beginning."""
    begin = time.monotonic()
    first = max((epoch.epoch for epoch in _look(job).epochs), default=-1)
    told = "nothing"
    while time.monotonic() < begin + _LONGEST_S:
        time.sleep(0.5)
        job.tail.look()
        view = _look(job)
        # The first one to end had begun before.
        ended = [epoch for epoch in view.epochs if epoch.epoch > first + 1]
        if ended:
            pace, ranks = ended[-1].pace, ended[-1].ranks
        elif view.present is not None and view.present.pace is not None:
            pace, ranks = view.present.pace, view.present.ranks
            # Begun before: what a run does first is not what it does.
            is_planted = bool(case.plant)
            if is_planted and max(rank.wall_s for rank in ranks) >= time.monotonic() - begin:
                continue
        else:
            continue
        told = pace_text(pace, ranks)
        least_s = _HOGGED_S if case.outside == "hog" else _MEASURED_S
        if min(rank.wall_s for rank in ranks) >= least_s:
            return Result(
                told, _is_named(case, pace, {r.rank: (r.node_name, r.stage) for r in ranks})
            )
    return Result(told, is_named=False)


def _is_named(case: Case, pace: Pace, nodes: dict[int, tuple[str, int]]) -> bool:
    told = case.told
    if told.bound not in (None, pace.bound) or told.stage not in (None, pace.stage):
        return False
    if told.wire and pace.wire is None:
        return False
    # Nobody is blamed for what all do alike.
    if told.slow is None or pace.slow is None:
        return told.slow is None and pace.slow is None
    node, stage = nodes[pace.slow.rank]
    return pace.slow.why is told.slow and node == "n1" and told.slow_stage in (None, stage)


def _try_hang(case: Case, job: Job, plant: Path) -> Result:
    event = case.told.event or "stood"
    before = len(_events(job, event))
    begin = time.monotonic()
    _strike(case, job, plant)
    limit_s = float(str(case.options.get("timeout-s", LIMIT_S)))
    while time.monotonic() < begin + limit_s + _LONGEST_S:
        time.sleep(0.1)
        job.tail.look()
        after_s = time.monotonic() - begin
        found = _events(job, event)[before:]
        if not found:
            continue
        if case.told.event:
            # Both halves of what was cut tell of the other.
            if not any("n1" in each for each in found):
                continue
            return Result(" | ".join(found), is_named=True, after_s=after_s)
        stood = _look(job).stood
        if stood is not None:
            text = hang_text(stood.hang, stood.stands)
            return Result(text, _is_story(case, stood), after_s - limit_s)
    return Result("nothing", is_named=False)


def _is_story(case: Case, stood: Stood) -> bool:
    told, hang = case.told, stood.hang
    names = {stand.rank: stand.node_name for stand in stood.stands}
    is_node = case.plant.get("node") in (None, *(names.get(rank) for rank in hang.ranks))
    is_place = not told.code or (hang.place is not None and hang.place.file == planted.__file__)
    return hang.cause is told.cause and is_node and is_place and hang.in_helper >= told.helper


def _events(job: Job, name: str) -> list[str]:
    rows = [row for row in read_events(RunPaths(job.run_dir).events) if name_of(row) == name]
    return [f"{lost_node(row) or row.get('node')}: {row.get('why')}" for row in rows]


def _strike(case: Case, job: Job, plant: Path) -> None:
    if case.outside == "stop":
        job.signal_rank("n1", 1, signal.SIGSTOP)
    elif case.outside == "cut":
        job.link("n1", "down")
    elif case.plant:
        beside = plant.with_suffix(".new")
        beside.write_text(json.dumps(dict(case.plant)), encoding="utf-8")
        beside.replace(plant)


@contextmanager
def _hogs(job: Job) -> Iterator[None]:
    """Busy programs on the core that the ranks of node n1 are on; the others have another one."""
    cores = sorted(os.sched_getaffinity(0))
    for local_rank in range(2):
        # Before whatever else this machine does, which the other node is not to feel.
        pid = job.rank_pid("n0", local_rank)
        with suppress(PermissionError):
            os.sched_setscheduler(pid, os.SCHED_RR, os.sched_param(1))
    for name, core in (("n0", cores[0]), ("n1", cores[-1])):
        for local_rank in range(2):
            for thread in psutil.Process(job.rank_pid(name, local_rank)).threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread.id, {core})
    words = f"import os; os.sched_setaffinity(0, {{{cores[-1]}}})\nwhile True: pass"
    processes = [subprocess.Popen([sys.executable, "-S", "-c", words]) for _ in range(_NUM_HOGS)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def cases_of(cases: Sequence[Case], only: Sequence[str]) -> list[Case]:
    """Those whose name has one of the texts; all without texts."""
    return [case for case in cases if not only or any(text in case.name for text in only)]
