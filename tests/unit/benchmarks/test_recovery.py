"""What the recovery benchmark makes of a job that stands still."""

from __future__ import annotations

import pytest

from benchmarks.faults.job import Job
from benchmarks.recovery import CASES, NEVER, _repeat


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
    results = _repeat(StandsStill, CASES[0], 3, None)
    assert [result.took_s for result in results] == [NEVER]
    assert capsys.readouterr().out == "kill a worker: step 5: not within 90.0 s\n"
