"""Whatever is wrong with the input is told in one line, with its exit code, and in time."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.errors.case import Case, Chapter
from benchmarks.errors.catalogue.data import DATA
from benchmarks.errors.catalogue.left_out import LEFT_OUT
from benchmarks.errors.catalogue.models import CUTS, MODELS, WEIGHTS
from benchmarks.errors.catalogue.options import DEVICES, OPTIONS
from benchmarks.errors.catalogue.runs import FOLDERS, LAUNCHERS, NODES, TRAINING
from benchmarks.errors.files import make_files
from benchmarks.errors.running import run_case
from benchmarks.errors.table import page
from benchmarks.results.record import FOLDER, Options, machine
from bundlerun.launcher.run_folder.files import write_text

CLAIM = "whatever is wrong with the input is told in one line, with its exit code, in time"
CHAPTERS: tuple[Chapter, ...] = (
    OPTIONS, DEVICES, DATA, MODELS, CUTS, WEIGHTS, LAUNCHERS, NODES, FOLDERS, TRAINING,
)  # fmt: skip
PAGE = FOLDER / "errors.md"
RESULTS = FOLDER / "errors.json"


def cases() -> list[Case]:
    """All, in order of the page."""
    return [case for chapter in CHAPTERS for case in chapter.cases]


def run(options: Options) -> None:
    """Runs the cases; those that `--only` names take the place of older results of theirs."""
    done: list[dict[str, Any]] = []
    with TemporaryDirectory(prefix="bundlerun-errors-") as name:
        folder = Path(name)
        make_files(folder)
        for case, result in _measured(cases(), folder, options):
            done.append(result)
            if options.keep:
                _keep(case, result)
    print(f"\n{sum(not result['fault'] for result in done)} of {len(done)} as wanted")


def _keep(case: Case, result: dict[str, Any]) -> None:
    # Read anew each time: another process may do other cases.
    found = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    found[case.name] = result
    results = {each.name: found[each.name] for each in cases() if each.name in found}
    write_text(RESULTS, json.dumps(results, indent=1) + "\n")
    write_text(PAGE, page(CHAPTERS, LEFT_OUT, results, conditions(results)))


def _measured(
    wanted: Sequence[Case], folder: Path, options: Options
) -> Iterator[tuple[Case, dict[str, Any]]]:
    here = machine()
    for case in wanted:
        missing = [name for name in case.needs if importlib.util.find_spec(name) is None]
        if missing or not options.wants(case.name):
            if missing:
                print(f"skipped: {case.name}: {', '.join(missing)} is not installed")
            continue
        found = run_case(case, folder)
        fault = found.fault(case)
        words = f"{found.code} {found.seconds:6.1f} s  {case.name}: {fault or 'as wanted'}"
        print(f"{words}\n    {found.text}", flush=True)
        when = {"date": time.strftime("%Y-%m-%d"), "machine": here["machine"]}
        yield case, {**asdict(found), "fault": fault, **when}


def conditions(results: Mapping[str, Any]) -> str:
    """When and where cases were run, in words."""
    dates = sorted({result["date"] for result in results.values()})
    machines = sorted({result["machine"] for result in results.values()})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    return f"Measured {when} on {' and '.join(machines)}, which other work shared."
