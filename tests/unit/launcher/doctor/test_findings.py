"""Findings, and what they come to."""

from __future__ import annotations

import pytest

from bundlerun.launcher.doctor.findings import (
    Finding,
    count_text,
    error,
    exit_code_of,
    lines_of,
    ok,
    warning,
)

GOOD, BAD, WORSE = ok("a", "fine"), warning("longer", "slow", "mend it"), error("c", "no", "do")


def test_only_an_error_ends_with_3() -> None:
    assert exit_code_of([GOOD, BAD]) == 0
    assert exit_code_of([GOOD, WORSE, BAD]) == 3


def test_a_finding_comes_back_as_it_was_sent() -> None:
    assert [Finding.of_plain(each.to_plain()) for each in (GOOD, BAD)] == [GOOD, BAD]


@pytest.mark.parametrize("plain", [{}, {"level": "fatal", "subject": "", "text": "", "mend": ""}])
def test_what_is_no_finding_is_refused(plain: dict[str, str]) -> None:
    with pytest.raises((KeyError, ValueError)):
        Finding.of_plain(plain)


def test_the_mend_stands_below_the_text() -> None:
    first, second, mend = lines_of([GOOD, BAD])
    assert first == "  ok       a       fine"
    assert second == "  warning  longer  slow"
    assert mend.index("->") == second.index("slow")
    assert count_text([GOOD, BAD, WORSE, WORSE]) == "2 errors, 1 warning"
    assert count_text([GOOD]) == "all 1 findings are ok"
