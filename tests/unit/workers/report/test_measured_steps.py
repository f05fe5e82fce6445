from __future__ import annotations

from bundlerun.workers.report.measured_steps import is_measured


def measured(num_in_pass: int, num_epochs: int = 0) -> list[int]:
    return [done for done in range(num_in_pass) if is_measured(num_epochs, done, num_in_pass)]


def test_the_third_step_of_a_start_is_measured_and_each_thousandth() -> None:
    assert measured(1) == [0]
    assert measured(2) == [1]
    assert measured(500) == [2]
    assert measured(2500) == [2, 999, 1999]


def test_of_many_epochs_some_have_a_measured_step() -> None:
    assert [epoch for epoch in range(35) if measured(5, epoch)] == [0, 1, 2, 5, 10, 20, 30]
    assert measured(1500, 7) == [999]
