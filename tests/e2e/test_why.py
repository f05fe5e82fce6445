"""A run that stands says why, and who waited for whom; a run that is slow, what bounds it."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.why.causes import CASES, Case
from benchmarks.why.trial import cases_of, try_group

FAST = ("optimizer: slow on one rank", "stands: in __getitem__", "stands: a call keeps")
"""A wait for data, for a collective, and one that only the agent can tell of."""


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[bool, str]]:
    cases = [case for case in cases_of(CASES, FAST) if not case.options]
    return {
        case.name: (found.is_named, found.told)
        for case, found in try_group([_hasty(case) for case in cases])
    }


def _hasty(case: Case) -> Case:
    return dataclasses.replace(case, options={"timeout-s": 5})


@pytest.mark.slow
@pytest.mark.parametrize("begin", FAST)
def test_a_cause_is_named(results: dict[str, tuple[bool, str]], begin: str) -> None:
    (found,) = [result for name, result in results.items() if name.startswith(begin)]
    assert found[0], found[1]
