"""Faults of all kinds, drawn from a seed, into one small run; then everything must be right."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.faults.chaos import Chaos, Recovery, verdict
from benchmarks.faults.job import Job, host_nodes, loopback_nodes, opened
from benchmarks.faults.plan import plan_blows
from benchmarks.faults.topologies import BUNDLES, TOPOLOGIES, Topology
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Options, print_table

CLAIM = (
    "whatever dies, freezes or is cut off, in any order, no run hangs, differs or leaves a trace"
)
SLOTS = BUNDLES.slots
FAULTS = 200
WIRE = Wire(mbit_per_s=1000)


def run(options: Options) -> None:
    """Hits a run on each topology, one after the other; they share the faults.

    Raises:
        RuntimeError: something is wrong after one; with the command that does it again, and the
            folder of the run, which is kept.
    """
    if why_not():
        print(f"no links are cut, the nodes are on the loopback: {why_not()}", flush=True)
    wanted = [one for one in TOPOLOGIES if options.wants(one.name)]
    for number, one in enumerate(wanted):
        print(f"{one.name}: nodes of {', '.join(map(str, one.slots))}", flush=True)
        _hit(options, one, ((options.faults or FAULTS) + number) // len(wanted))


def _hit(options: Options, where: Topology, count: int) -> None:
    """One run, until all of its faults have struck."""
    has_links, slots = not why_not(), where.slots
    # From the seed alone: the command in `again` gives the same blows.
    blows = plan_blows(
        options.seed, count, slots, has_links=has_links, kinds=where.kinds, pairs=where.pairs
    )
    words = f"python -m benchmarks chaos --seed {options.seed} --faults {count} --only {where.name}"
    folder = Path(tempfile.mkdtemp(prefix="bundlerun-chaos-"))
    again = f"to do it again: {words}\nwhat it left: {folder}"
    network = open_hosts(len(slots), WIRE) if has_links else nullcontext()
    with network as hosts:
        nodes = loopback_nodes(slots) if hosts is None else host_nodes(hosts, slots)
        job = Job(folder, nodes, hosts=hosts, options=dict(where.options), work=where.work)
        with opened(job):
            chaos = Chaos(job, say)
            try:
                job.wait_for_ranks(sum(slots), 120)
                begin, first = time.monotonic(), job.tail.look()
                chaos.run(blows)
                passed, done = time.monotonic() - begin, job.tail.finished - first
                wrong = verdict(job) + chaos.losses()
            # The folder is kept: it has the logs of what went wrong.
            except AssertionError as exc:
                raise RuntimeError(f"{exc}\n{again}") from exc
    if wrong:
        raise RuntimeError("\n".join([*wrong, again]))
    shutil.rmtree(folder)
    _report(options, where, chaos.recoveries, count, passed, done)


def say(text: str) -> None:
    """Tells who looks on."""
    print(text, flush=True)


def _report(
    options: Options,
    where: Topology,
    recoveries: Sequence[Recovery],
    count: int,
    passed_s: float,
    done: int,
) -> None:
    # The first one's files have the name that they had before there were others.
    name = "chaos" if where is BUNDLES else f"chaos-{where.name}"
    by_kind: dict[str, list[Recovery]] = {}
    for one in recoveries:
        # Pairs have too many combinations to be told apart.
        kind = one.kinds[0] if len(one.kinds) == 1 else "two at a time"
        by_kind.setdefault(kind, []).append(one)
    rows = []
    bars = Bars("s", f"fault to next finished step, {count} faults, seed {options.seed}")
    for kind, ones in sorted(by_kind.items()):
        times = [one.took_s for one in ones if one.took_s is not None]
        median, worst = (statistics.median(times), max(times)) if times else ("-", "-")
        lost = sum(one.lost for one in ones)
        rows.append([kind, len(ones), len(ones) - len(times), median, worst, lost])
        if times:
            bars.add(kind, "median", statistics.median(times))
            bars.add(kind, "worst", max(times))
    print_table(["fault", "times", "not noticed", "median s", "worst s", "steps lost"], rows)
    stalled = sum(one.took_s or 0.0 for one in recoveries)
    goodput = max(0.0, 1 - stalled / passed_s)
    print(f"\n{done} steps in {passed_s:.0f} s; time that was no stall: {100 * goodput:.0f} %")
    options.record(
        name,
        {
            "topology": where.name,
            "seed": options.seed,
            "faults": count,
            "steps": done,
            "seconds": round(passed_s, 1),
            "goodput": round(goodput, 3),
            "recoveries": [asdict(one) for one in recoveries],
        },
    )
    draw_bars(name, bars, options)
