from __future__ import annotations

from benchmarks.why.causes import CASES
from benchmarks.why.trial import cases_of, groups_of


def test_there_are_more_than_twenty_causes_each_with_a_name_and_something_to_be_told() -> None:
    assert len({case.name for case in CASES}) == len(CASES) > 20
    for case in CASES:
        assert case.plant or case.outside or case.mbit_per_s, case.name
        told = case.told
        assert told.bound or told.slow or told.cause or told.event, case.name


def test_cases_that_want_the_same_run_share_one() -> None:
    groups = groups_of(CASES)
    assert sorted(c.name for group in groups for c in group) == sorted(c.name for c in CASES)
    for group in groups:
        assert len({repr(case.options) for case in group}) == 1
    assert len(groups) < 10
    assert [case.name for case in cases_of(CASES, ["SIGSTOP"])] == ["stands: SIGSTOP"]
