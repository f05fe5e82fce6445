from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from bundlerun.launcher.run_folder.measured import (
    MeasuredRank,
    Span,
    prune_measured,
    read_measured,
    write_measured,
)
from bundlerun.launcher.run_folder.paths import RunPaths

RANK = MeasuredRank(
    step=2, round="one", node="a", boot="boot", rank=0, bundle=0, stage=0, replica=0, chunks=1,
    wall_s=1e9, host_bytes=1, device_bytes=0,
    spans=(Span("forward", 1.0, 2.0, "F0"), Span("collect", 2.0, 2.5)),
)  # fmt: skip


def test_what_was_written_is_read_by_step_and_rank(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    ranks = [RANK, replace(RANK, rank=1, stage=1), replace(RANK, step=9)]
    for rank in reversed(ranks):
        write_measured(paths, rank)
    assert list(read_measured(paths)) == [ranks[:2], ranks[2:]]
    assert list(read_measured(RunPaths(tmp_path / "none"))) == []


def test_ranks_of_an_earlier_round_and_damaged_files_are_left_out(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    write_measured(paths, replace(RANK, bundle=7, rank=14))
    later = replace(RANK, round="two", wall_s=2e9)
    write_measured(paths, later)
    folder = paths.measured_rank(2, 0, 0, 0).parent
    (folder / "bundle-1-stage-0-replica-0.json").write_text('{"step": 2, "ra')
    (folder / "bundle-2-stage-0-replica-0.json").write_text('{"step": 2, "spans": [[1]]}')
    (folder / "bundle-3-stage-0-replica-0.json").write_text("[]")
    assert list(read_measured(paths)) == [[later]]


def test_the_steps_that_were_measured_last_are_kept_whatever_their_numbers(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    for age, step in enumerate([900, 901, 2, 3]):
        write_measured(paths, replace(RANK, step=step))
        os.utime(paths.measured_rank(step, 0, 0, 0).parent, (age, age))
    prune_measured(paths, keep=2)
    assert [ranks[0].step for ranks in read_measured(paths)] == [2, 3]
