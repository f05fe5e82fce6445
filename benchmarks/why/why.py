"""Causes planted one after the other: each is to be named; and a busy run, of which nothing is."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from benchmarks.alarms import TIMES_OVER, busy
from benchmarks.cluster.hosts import why_not
from benchmarks.faults.job import opened
from benchmarks.results.record import Check, Options
from benchmarks.why.causes import CASES, Case, Told
from benchmarks.why.trial import Result, cases_of, groups_of, job_of, try_group
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.hang_words import hang_text
from bundlerun.launcher.why.pace_words import slow_text
from bundlerun.launcher.why.view import view_of

CLAIM = "why a run is slow or stands is named, and nothing is where nothing is wrong"
MINUTES = 30.0
QUIET = "quiet"
"""Of --only: the busy run without a cause."""
_QUIET_LIMIT_S = 60.0
_LOOK_S = 5.0
_AFTER_S = 5.0


def run(options: Options) -> None:
    """Tries all cases, or those of --only; `--only quiet --minutes 5` for the busy run."""
    without_links = why_not()
    results: dict[str, Result] = {}
    only = [text for text in options.only if text != QUIET]
    wanted = cases_of(CASES, only) if only or not options.only else []
    for group in groups_of(wanted):
        if group[0].mbit_per_s and without_links:
            print(f"left out: {[case.name for case in group]}: {without_links}", flush=True)
            continue
        for case, found in try_group(group):
            results[case.name] = found
            after = "" if found.after_s is None else f" {found.after_s:.1f} s after"
            word = "named" if found.is_named else "MISSED"
            print(f"{word}{after}  {case.name}: {found.told}", flush=True)
    alarms: list[str] = []
    minutes = options.minutes or MINUTES
    if QUIET in options.only or not options.only:
        alarms = quiet(minutes)
        print(f"{len(alarms)} false in {minutes:g} minutes", *alarms, sep="\n", flush=True)
    afters = [r.after_s for n, r in results.items() if r.after_s is not None and "SIG" not in n]
    options.record(
        "why",
        {
            "named": {name: found.told for name, found in results.items() if found.is_named},
            "missed": {name: found.told for name, found in results.items() if not found.is_named},
            "worst_after_s": max(afters, default=None),
            "quiet_minutes": minutes if QUIET in options.only or not options.only else 0,
            "false": alarms,
        },
        [
            Check("causes missed, at most", sum(not r.is_named for r in results.values()), 0),
            Check("verdict after the limit, s, at most", max(afters, default=0.0), _AFTER_S),
            Check("false, at most", len(alarms), 0),
        ],
    )


def quiet(minutes: float) -> list[str]:
    """What is said of a run without a cause, on a machine with four times too much to do."""
    found: dict[str, None] = {}
    case = Case(name=QUIET, told=Told(), environ={"WHY_BUSY": "1"})
    with tempfile.TemporaryDirectory(prefix="bundlerun-why-") as folder, ExitStack() as stack:
        job = job_of(case, Path(folder), stack, _QUIET_LIMIT_S)
        with opened(job):
            job.wait_for_ranks(sum(case.slots), 120)
            paths = RunPaths(job.run_dir)
            with busy(TIMES_OVER * (os.cpu_count() or 1)):
                until = time.monotonic() + 60 * minutes
                while time.monotonic() < until:
                    time.sleep(_LOOK_S)
                    job.tail.look()
                    view = view_of(paths, now_s=time.time())
                    if view.present is not None and view.present.hang is not None:
                        found[hang_text(view.present.hang, view.present.stands)] = None
                    for epoch in view.epochs:
                        if epoch.pace.slow is not None:
                            text = slow_text(epoch.pace.slow, epoch.ranks)
                            found[f"epoch {epoch.epoch}: {text}"] = None
            rows = read_events(paths.events)
            found |= {str(row.get("why")): None for row in rows if name_of(row) == "stood"}
            done = job.tail.finished
            job.drain(120)
    print(f"{done} steps", flush=True)
    return list(found)
