"""`--standby`: the next start is made of warm processes, and nothing else differs."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cluster.waiting import comes_true
from benchmarks.faults.job import Job, loopback_nodes, losses, opened, undisturbed
from bundlerun.launcher.run_folder.events import EventName, name_of, read_events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.e2e.test_runs import free_port
from tests.waiting import wait_until
from tests.warm import Warm

NUM_RANKS = 2
LIMIT_S = 120.0
"""For a start, or a warm-up, on a machine that others keep busy."""
OPTIONS: dict[str, object] = {
    "model": "shufflenet_v2_x0_5",
    "cut": "",
    "image-size": 32,
    "batch-size": 4,
    "microbatch-size": 2,
}
CLOSE = 1e-9
"""Losses of float64 sums in another order."""


def events_of(job: Job, name: EventName) -> list[dict[str, Any]]:
    return [row for row in read_events(RunPaths(job.run_dir).events) if name_of(row) == name]


def wait_for(job: Job, name: EventName, count: int) -> list[dict[str, Any]]:
    # Seldom, as each look reads the whole log.
    have_come = comes_true(lambda: len(events_of(job, name)) >= count, LIMIT_S, poll_s=0.2)
    assert have_come, f"{count} x {name}\n{job.text()[-3000:]}\n{job.last_events()}"
    return events_of(job, name)[-NUM_RANKS:]


def test_a_killed_rank_is_followed_by_standbys_without_any_loss(
    warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLERUN_STANDBY", "1")
    monkeypatch.setenv("BUNDLERUN_VALIDATE", "0")
    nodes, port = loopback_nodes([NUM_RANKS]), free_port()
    with opened(Job(tmp_path, nodes, port, options=OPTIONS, starter=warm.start)) as job:
        ready = wait_for(job, "standby ready", NUM_RANKS)
        assert all(row["has_stepped"] for row in ready)
        job.signal_rank("n0", 1, signal.SIGKILL)
        starts = wait_for(job, "starts", 2 * NUM_RANKS)
        assert {row["pid"] for row in starts} == {row["pid"] for row in ready}
        assert all(row["was_standby"] and row["age_s"] < 10 for row in starts)
        # Their places are filled anew.
        wait_for(job, "standby ready", 2 * NUM_RANKS)
        job.tail.look()
        assert (len(job.tail.resumes), job.tail.lost_since(0)) == (1, 0)
        assert job.drain() == [75]
        found = losses(job.run_dir)
        expected = losses(undisturbed(tmp_path, len(found), OPTIONS, warm.start))
        assert found == pytest.approx(expected, rel=CLOSE)
        wait_until(lambda: job.orphans() == [])
        assert job.leftovers() == []
