from __future__ import annotations

import pytest

from launcher.budget import Attempt, Budget
from launcher.errors import VERDICT_FINAL


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
    assert why == "3 attempts in a row finished no step"


def test_a_finished_step_makes_the_budget_whole_again() -> None:
    budget, why = after(Budget(most=3), BARREN, BARREN, Attempt(num_steps=1), BARREN, BARREN)
    assert (budget.num_barren, why) == (2, "")


@pytest.mark.parametrize(
    ("over", "is_failure"),
    [
        ("", True),
        ("node b is lost", True),
        ("node b asks for a new round", True),
        ("node c joins", False),
        ("no active coordinator at a:1 for 3.0 s", False),
    ],
)
def test_a_node_that_joins_and_a_cut_network_are_no_failures_of_the_program(
    over: str, is_failure: bool
) -> None:
    attempt = Attempt(num_steps=0, over=over)
    assert (after(Budget(most=3), attempt, attempt, attempt)[1] != "") == is_failure


def test_without_a_limit_it_goes_on_for_ever() -> None:
    assert after(Budget(most=0), *[BARREN] * 100)[1] == ""


@pytest.mark.parametrize(
    ("code", "is_final"), [(0, False), (1, False), (2, True), (3, False), (VERDICT_FINAL, True)]
)
def test_a_wrong_configuration_is_not_tried_again(code: int, is_final: bool) -> None:
    _, why = after(Budget(most=3), Attempt(num_steps=5, exit_codes=(0, code)))
    assert (why != "") == is_final
