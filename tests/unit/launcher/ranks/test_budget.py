from __future__ import annotations

import pytest

from bundlerun.launcher.errors import VERDICT_FINAL
from bundlerun.launcher.ranks.budget import Attempt, Budget, code_of_failed
from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.ranks.fault import Fault, FaultKind


def after(budget: Budget, *attempts: Attempt) -> tuple[Budget, str]:
    why = ""
    for attempt in attempts:
        budget = budget.after(attempt)
        why = budget.verdict(attempt)
    return budget, why


BARREN = Attempt(num_steps=0)


def test_three_attempts_in_a_row_without_a_step_end_the_run() -> None:
    budget, why = after(Budget(most=3), BARREN, BARREN)
    assert why == ""
    _, why = after(budget, BARREN)
    assert why == "3 attempts in a row finished no new step"


def test_a_new_step_makes_the_budget_whole_again() -> None:
    budget, why = after(
        Budget(most=3), BARREN, BARREN, Attempt(num_steps=1, step=1), BARREN, BARREN
    )
    assert (budget.num_barren, why) == (2, "")


def test_steps_that_were_finished_before_are_none() -> None:
    first, again = Attempt(num_steps=10, step=10), Attempt(num_steps=2, step=10)
    budget, why = after(Budget(most=3), first, again, again)
    assert (budget.num_barren, why) == (2, "")
    assert after(budget, again)[1] == "3 attempts in a row finished no new step"
    assert after(budget, Attempt(num_steps=3, step=11), again, again)[1] == ""


def test_an_attempt_that_began_far_on_and_finished_nothing_is_barren() -> None:
    resumed = Attempt(num_steps=0, step=500)
    assert after(Budget(most=3), resumed, resumed, resumed)[1] != ""


def test_a_node_whose_ranks_are_spare_judges_nobody() -> None:
    spare = Attempt(num_steps=0, is_spare=True, over=EndCause.LOST)
    assert after(Budget(most=3), *[spare] * 9)[1] == ""


@pytest.mark.parametrize(
    ("over", "is_failure"),
    [
        (None, True),
        (EndCause.LOST, True),
        (EndCause.ASKS, True),
        (EndCause.JOINS, False),
        (EndCause.CUT_OFF, False),
        (EndCause.LEFT_OUT, False),
    ],
)
def test_a_node_that_joins_and_a_cut_network_are_no_failures_of_the_program(
    over: EndCause | None, is_failure: bool
) -> None:
    attempt = Attempt(num_steps=0, over=over)
    assert (after(Budget(most=3), attempt, attempt, attempt)[1] != "") == is_failure


def failed(kind: FaultKind, place: int, *, step: int = 7, num_steps: int = 1) -> Attempt:
    return Attempt(num_steps=num_steps, step=step, exit_codes=(1,), faults=(Fault(kind, place),))


def test_the_same_error_at_the_same_place_ends_the_run_though_steps_were_finished() -> None:
    once = failed(FaultKind.PROGRAM, 1)
    assert after(Budget(most=3), once)[1] == ""
    reason = "the same error at the same place and step again, as in another start"
    assert after(Budget(most=3), once, once)[1] == reason
    assert after(Budget(most=3), once, BARREN, once)[1] == reason
    assert after(Budget(most=3), once, failed(FaultKind.PROGRAM, 2, step=8))[1] == ""


def test_what_may_pass_is_tried_as_often_as_there_are_new_steps() -> None:
    attempts = [failed(FaultKind.PASSING, 1, step=step) for step in range(1, 9)]
    assert after(Budget(most=3), *attempts)[1] == ""


def test_what_cannot_pass_ends_the_run_at_once_before_a_first_step_only() -> None:
    hopeless = failed(FaultKind.HOPELESS, 1, step=0, num_steps=0)
    assert "before its first step" in after(Budget(most=3), hopeless)[1]
    assert after(Budget(most=3), Attempt(num_steps=1, step=1), hopeless)[1] == ""


def test_without_a_limit_it_goes_on_for_ever() -> None:
    once = failed(FaultKind.PROGRAM, 1)
    assert after(Budget(most=0), *[BARREN] * 100, once, once)[1] == ""


@pytest.mark.parametrize(
    ("code", "is_final"), [(0, False), (1, False), (2, True), (3, False), (VERDICT_FINAL, True)]
)
def test_a_wrong_configuration_is_not_tried_again(code: int, is_final: bool) -> None:
    _, why = after(Budget(most=3), Attempt(num_steps=5, step=5, exit_codes=(0, code)))
    assert (why != "") == is_final


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ((), 1),
        ((1, 1), 1),
        ((3, 3), 3),
        ((3, 143), 3),
        ((143,), 1),
        ((3, 1), 1),
        ((3, 2), 2),
        ((0, 75), 75),
        ((3, VERDICT_FINAL), 1),
    ],
)
def test_a_machine_that_is_not_fit_is_what_the_run_ends_with(
    codes: tuple[int, ...], code: int
) -> None:
    assert code_of_failed(codes) == code
