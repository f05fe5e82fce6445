"""A rank that computes at half its speed from a step on: who it is, and what is left of the pace.

Passes sleep, so that what is measured is who does how much, and not who has a core. With the ideal
share each bundle does as many micro-batches as its speed is of all speeds.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.faults.job import Job, loopback_nodes, opened
from benchmarks.results.record import Check, Options, print_table
from benchmarks.why import planted
from benchmarks.why.trial import WORK, free_port
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "micro-batches are shared out anew within some steps where a rank becomes slow"
FROM_STEP, WITHIN, NUM_MEASURED = 50, 20, 40
REPEATS = 5
TARGET = 0.95
_LIMIT_S = 300.0
_LEAST_STEPS = 30
"""Before it becomes slow; the first ones are not counted."""


@dataclass(frozen=True, slots=True)
class Case:
    """A layout.

    Args:
        slots: of each node. shape: of a bundle; each node holds one. microbatches: of a step.
    """

    name: str
    slots: tuple[int, ...]
    shape: str
    microbatches: int


CASES = (
    Case("three bundles of one rank", (1, 1, 1), "1", 30),
    Case("two bundles of two stages, the second of one is slow", (2, 2), "1,1", 24),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one run.

    Args:
        of_ideal: throughput over that of the ideal share. unshared: before anything is shared out.
        after: steps from the first slow one to the first one that is shared out anew.
        counts: micro-batches of each bundle, in words. named_after: steps until it was named.
    """

    of_ideal: float
    unshared: float
    after: int
    text: str
    named_after: int


def run(options: Options) -> None:
    """Case by case."""
    rows, checks, recorded = [], [], {}
    for case in CASES:
        if not options.wants(case.name):
            continue
        found = [_measure(case) for _ in range(options.rounds_or(REPEATS))]
        shares = [each.of_ideal for each in found]
        after = [each.after for each in found]
        named = [each.named_after for each in found]
        rows.append(
            [
                case.name,
                len(found),
                statistics.median(shares),
                min(shares),
                statistics.median(each.unshared for each in found),
                max(after),
                max(named),
            ]
        )
        print(f"{case.name}: {found[-1].text}", flush=True)
        checks.append(Check(f"{case.name}: of the ideal, at least", min(shares), TARGET))
        checks.append(Check(f"{case.name}: steps until then, at most", max(after), WITHIN))
        recorded[case.name] = {
            "of_ideal": shares,
            "unshared": [each.unshared for each in found],
            "after": after,
            "named_after": named,
        }
    print_table(
        ["case", "runs", "of ideal", "worst", "unshared", "steps until", "steps until named"], rows
    )
    options.record("slow_rank", recorded, checks)


def _measure(case: Case) -> Result:
    with tempfile.TemporaryDirectory(prefix="bundlerun-slow-") as name:
        folder = Path(name)
        plant = folder / "plant"
        job = Job(
            folder,
            loopback_nodes(case.slots),
            port=free_port(),
            options={
                "shape": case.shape,
                "share": "measured",
                "batch-size": 4 * case.microbatches,
                "checkpoint-steps": 0,
            },
            environ={
                planted.FILE_VARIABLE: str(plant),
                "BUNDLERUN_AFFINITY": "false",
                "WHY_SAMPLES": "1000000",
            },
            program="benchmarks.why.agent",
            work=WORK,
        )
        with opened(job):
            job.wait_for_ranks(sum(case.slots), 120)
            job.wait_for_step(FROM_STEP, _LIMIT_S)
            _plant(plant, case)
            job.wait_for_step(FROM_STEP + 2 + WITHIN + NUM_MEASURED, _LIMIT_S)
            return _result(job, case)


def _plant(file: Path, case: Case) -> None:
    """A rank of the last bundle takes twice as long."""
    last = case.shape.count(",")
    told = {
        "place": "pass",
        "act": "sleep",
        "seconds": planted.PAUSE_S,
        "node": f"n{len(case.slots) - 1}",
        "local_rank": last,
    }
    beside = file.with_suffix(".new")
    beside.write_text(json.dumps(told), encoding="utf-8")
    beside.replace(file)


def _result(job: Job, case: Case) -> Result:
    paths = RunPaths(job.run_dir)
    times = {r["step"]: float(r["time"]) for r in read_rows(paths.metrics) if r["kind"] == "step"}
    healthy_s = (times[FROM_STEP - 1] - times[_LEAST_STEPS]) / (FROM_STEP - 1 - _LEAST_STEPS)
    # One of all bundles has half its speed.
    num_bundles = len(case.slots)
    ideal_s = healthy_s * num_bundles / (num_bundles - 0.5)
    # Seen from outside, the first slow step is one of the next two.
    begin = FROM_STEP + 2
    first, last = begin + WITHIN, begin + WITHIN + NUM_MEASURED - 1
    shared_s = (times[last] - times[first]) / (last - first)
    events = [row for row in read_events(paths.events) if int(row.get("step", -1)) > FROM_STEP]
    changes = [row for row in events if name_of(row) == "shares"]
    named = [int(row["step"]) for row in events if name_of(row) == "slow rank"]
    after = int(changes[0]["step"]) - begin if changes else NUM_MEASURED
    unshared_s = (times[begin + 5] - times[begin]) / 5
    return Result(
        of_ideal=ideal_s / shared_s,
        unshared=ideal_s / unshared_s,
        after=after,
        text=" | ".join(str(row["text"]) for row in changes) or "nothing was shared out anew",
        named_after=named[0] - begin if named else -1,
    )
