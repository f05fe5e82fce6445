"""What the recovery benchmark makes of a job that stands still."""

from __future__ import annotations

import pytest

from benchmarks.faults.job import Job, loopback_nodes
from benchmarks.recovery import CASES, NEVER, are_ready, repeated


class StandsStill(Job):
    """Comes up, and finishes no step after that."""

    is_up = False

    def start(self, name: str) -> None:
        """Needs no process."""

    def wait_for_step(self, count: int, limit_s: float = 60.0) -> None:
        if self.is_up:
            raise AssertionError(f"step {count}: not within {limit_s} s\nwhat agents said")
        self.is_up = True


def test_a_job_that_stands_still_is_a_result_and_no_end_of_the_benchmark(
    capsys: pytest.CaptureFixture[str],
) -> None:
    results = repeated(StandsStill, CASES[0], 3, None)
    assert [result.took_s for result in results] == [NEVER]
    assert capsys.readouterr().out == "kill a worker: step 5: not within 90.0 s\n"


def test_a_fault_waits_for_a_standby_of_each_rank_that_trains_now() -> None:
    nodes = loopback_nodes([2, 1])
    events: list[dict[str, object]] = []

    def ready_after(event: str, node: str, rank: int) -> bool:
        row = {"event": event, "node": node, "local_rank": rank, "t_s": float(len(events) + 1)}
        events.append(row)
        return are_ready(nodes, events)

    ranks = [("n0", 0), ("n0", 1), ("n1", 0)]
    assert not any([ready_after("starts", *each) for each in ranks])
    assert [ready_after("standby ready", *each) for each in ranks] == [False, False, True]
    # It has become the rank, and the next one is not there yet.
    assert not ready_after("starts", "n1", 0)
    assert ready_after("standby ready", "n1", 0)
