"""Findings, and what they come to."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest

from bundlerun.launcher.commands.arguments.look.doctor import add_arguments
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


def test_the_commands_of_the_page_are_understood() -> None:
    page = (Path(__file__).parents[4] / "docs/doctor.md").read_text()
    commands = re.findall(r"^    .*?bundlerun (doctor[^#\n]*)", page, re.MULTILINE)
    assert len(commands) == 5
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for command in commands:
        parser.parse_args(shlex.split(command)[1:])
