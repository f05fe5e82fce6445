"""One bundle over four nodes: nodes are lost, and it goes on in a shape of fewer stages."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable
from contextlib import nullcontext

from benchmarks.cluster.hosts import open_hosts, why_not
from benchmarks.faults.chaos import leader
from benchmarks.faults.job import ROOT, RUN, Job
from benchmarks.recovery import (
    LIMIT_S,
    NEVER,
    REPEATS,
    WIRE,
    Case,
    Result,
    recorded_of,
    repeated,
    shown,
    times_of,
)
from benchmarks.results.record import Check, Options, print_table
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "a bundle goes on without the nodes that it has lost, and loses no finished step"
SLOTS = (1, 1, 1, 1)
SHAPES = "1,1,1,1|1,1,1|1,1|1"
WORST = 2.0
"""Of a case, over its median's target."""
WORK = {
    **RUN,
    "model": f"{ROOT / 'benchmarks' / 'workload' / 'small_cnn.py'}:build",
    "cut": "",
    "image-size": 16,
}


def _both(*places: int) -> Callable[[Job], None]:
    """Kills the nodes at these places of the round, which has them in the order they came in."""

    def act(job: Job) -> None:
        events = read_events(RunPaths(job.run_dir).events)
        rounds = [row["nodes"] for row in events if name_of(row) == "coordinator: round"]
        names = [rounds[-1][place] for place in places]
        # Frozen first, so that neither sees the other one go.
        for name in names:
            job.signal_node(name, signal.SIGSTOP)
        for name in names:
            job.kill_node(name)

    return act


CASES = (
    Case("kill a node", lambda job: job.kill_node("n1"), 2),
    Case("kill the coordinator's node", lambda job: job.kill_node(leader(job)), 4),
    Case("kill two nodes, not each other's buddies", _both(1, 2), 4),
    Case("cut a link", lambda job: job.link("n1", "down"), 4, needs_links=True),
    Case("freeze a node", lambda job: job.signal_node("n1", signal.SIGSTOP), 4),
    Case("kill two nodes that are buddies", _both(1, 3), NEVER),
)
"""Buddies are half of the ring away: places 0 and 2 of the round, 1 and 3."""


def run(options: Options) -> None:
    """Fault by fault; each time with all nodes again before."""
    without_links = why_not()
    if without_links:
        print(f"no link is cut, the nodes are on the loopback: {without_links}", flush=True)
    found: dict[Case, list[Result]] = {}
    ways = {"work": WORK, "options": {"shape": SHAPES}}
    network = nullcontext() if without_links else open_hosts(len(SLOTS), WIRE)
    with network as hosts:
        for case in CASES:
            if options.wants(case.name) and not (case.needs_links and without_links):
                found[case] = repeated(
                    Job, case, options.rounds_or(REPEATS), hosts, slots=SLOTS, **ways
                )
                print(f"{case.name}: {times_of(found[case])}", flush=True)
    _report(options, found)


def _report(options: Options, found: dict[Case, list[Result]]) -> None:
    rows, checks = [], []
    for case, results in found.items():
        times = [min(LIMIT_S, each.took_s) for each in results]
        median, worst, lost = statistics.median(times), max(times), max(r.lost for r in results)
        rows.append([case.name, len(results), shown(median), shown(worst), lost])
        if case.target_s < NEVER:
            checks += [
                Check(f"{case.name}: seconds, at most", median, case.target_s),
                Check(f"{case.name}: worst, at most", worst, WORST * case.target_s),
                Check(f"{case.name}: steps lost, at most", lost, 0),
            ]
    print_table(["fault", "times", "median s", "worst", "lost"], rows)
    recorded = {case.name: recorded_of(results) for case, results in found.items()}
    options.record("outlive", recorded, checks)
