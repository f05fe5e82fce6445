"""Faults of all kinds into a run that is told to trackers; each must have each step once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.chaos import SLOTS, say
from benchmarks.faults.chaos import Chaos
from benchmarks.faults.job import Job, loopback_nodes, opened
from benchmarks.faults.plan import plan_blows
from benchmarks.faults.tracked import SHOWN, wrong_in
from benchmarks.results.record import ROOT, Options, print_table
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "whatever dies, each tracker has each step of the history exactly once"
FAULTS = 200
_LONGEST_S = 120.0


def skip_reason() -> str:
    """Why it cannot run here; empty: it can."""
    return "" if any(map(find_spec, SHOWN)) else "no tracker is installed"


def run(options: Options) -> None:
    """Hits a run of three nodes that tells all trackers which are installed.

    Raises:
        RuntimeError: a tracker has not each step once; the folder of the run is kept.
    """
    count = options.faults or FAULTS
    names = [name for name in SHOWN if options.wants(name) and find_spec(name)]
    folder = Path(tempfile.mkdtemp(prefix="bundlerun-trackers-"))
    wrong, steps = _wrong(names, folder, options.seed, count)
    if wrong:
        raise RuntimeError("\n".join([*wrong, f"what it left: {folder}"]))
    shutil.rmtree(folder)
    print_table(["tracker", "faults", "steps, each there once"], [(n, count, steps) for n in names])
    told = {"trackers": names, "faults": count, "steps": steps}
    options.record("trackers", {"seed": options.seed, "load": os.getloadavg(), **told})


def _wrong(names: list[str], folder: Path, seed: int, count: int) -> tuple[list[str], int]:
    """What the trackers have not as they should, and how many steps the run has."""
    # For this process, too, which asks them.
    own = {"WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio")}
    os.environ.update({**own, "WANDB__DISABLE_STATS": "true"})
    job = Job(folder, loopback_nodes(SLOTS), options={"tracker": ",".join(names)})
    paths = RunPaths(job.run_dir)
    with opened(job):
        job.wait_for_ranks(sum(SLOTS), _LONGEST_S)
        Chaos(job, say).run(plan_blows(seed, count, SLOTS, has_links=False))
        job.drain(_LONGEST_S)
    for name in names:
        # What its last process had no time for.
        rest = [sys.executable, "-m", "bundlerun", "track", str(paths.root), "--tracker", name]
        subprocess.run(rest, cwd=ROOT, check=True, timeout=600)
    return [text for name in names for text in wrong_in(name, paths)], job.tail.finished
