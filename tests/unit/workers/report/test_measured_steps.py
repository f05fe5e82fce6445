from __future__ import annotations

from bundlerun.workers.report.measured_steps import is_measured


def measured(num_in_pass: int) -> list[int]:
    return [done for done in range(num_in_pass) if is_measured(done, num_in_pass)]


def test_the_third_step_of_each_epoch_and_start_is_measured_and_each_thousandth() -> None:
    assert measured(1) == [0]
    assert measured(2) == [1]
    assert measured(500) == [2]
    assert measured(2500) == [2, 999, 1999]
