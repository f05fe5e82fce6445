"""The process that makes one timeline of the profiles of all ranks, once they are there.

python -m bundlerun.launcher.report.merge_traces RUN_DIR FOLDER COUNT
"""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from pathlib import Path

from bundlerun.launcher.report.traces import RankTrace, timeline
from bundlerun.launcher.run_folder.files import name_beside
from bundlerun.launcher.run_folder.measured import rank_of_text
from bundlerun.launcher.run_folder.paths import RunPaths

LONGEST_WAIT_S = 120.0
"""For the profiles of other ranks."""
_PERIOD_S = 0.2


def merge(paths: RunPaths, folder: str, count: int, *, limit_s: float = LONGEST_WAIT_S) -> int:
    """Writes the timeline; of the ranks that are there, should some not come.

    Args:
        paths: of the run.
        folder: of the profile.
        count: ranks that write one.
        limit_s: longest wait for them.

    Returns:
        Ranks that are in it.
    """
    ends = time.monotonic() + limit_s
    while len(files := paths.rank_traces(folder)) < count and time.monotonic() < ends:
        time.sleep(_PERIOD_S)
    ranks = sorted(map(_read, files), key=lambda rank: rank.steps[0].rank)
    # Of a round that has ended early, what it left; the newest has the steps to the end.
    newest = max((rank.steps[0].round for rank in ranks), key=lambda r: _begun(ranks, r))
    ranks = [rank for rank in ranks if rank.steps[0].round == newest]
    path = paths.timeline(folder)
    beside = name_beside(path)
    try:
        with gzip.open(beside, "wt", compresslevel=5, encoding="utf-8") as file:
            json.dump(timeline(ranks), file)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return len(ranks)


def _begun(ranks: list[RankTrace], name: str) -> float:
    firsts = [rank.steps[0] for rank in ranks if rank.steps[0].round == name]
    return max(first.wall_s + first.spans[0].begin_s for first in firsts)


def _read(file: Path) -> RankTrace:
    with gzip.open(file, "rt", encoding="utf-8") as text:
        trace = json.load(text)
    steps = [rank_of_text(json.dumps(step)) for step in trace.pop("bundlerun")]
    return RankTrace([step for step in steps if step is not None], trace)


if __name__ == "__main__":
    os.nice(10)
    merge(RunPaths(Path(sys.argv[1])), sys.argv[2], int(sys.argv[3]))
