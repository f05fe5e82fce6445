from __future__ import annotations

import argparse
import json
import shlex
from pathlib import Path

import pytest

from benchmarks.errors.case import Case
from benchmarks.errors.catalogue.left_out import LEFT_OUT
from benchmarks.errors.errors import CHAPTERS, PAGE, RESULTS, cases, conditions
from benchmarks.errors.files import make_files
from benchmarks.errors.running import Outcome, run_case
from benchmarks.errors.table import page
from bundlerun.launcher.commands.arguments.run import add_arguments

RESULT = json.loads(RESULTS.read_text(encoding="utf-8"))


def test_names_of_cases_are_their_own_and_say_what_is_told() -> None:
    names = [case.name for case in cases()]
    assert len(names) == len({*names}) > 90
    assert all(case.told for case in cases())


def test_what_is_typed_has_options_that_there_are() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    known = {name for action in parser._actions for name in action.option_strings}
    for case in cases():
        for line in (*case.before, case.beside, case.line):
            first, *words = shlex.split(line) or ["python"]
            assert first in ("bundlerun", "python"), line
            options = {w.partition("=")[0] for w in words if w.startswith("--")}
            unknown = options - known
            assert not unknown or case.name == "a misspelt option", (line, unknown)


def test_the_page_is_what_was_measured_last() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(CHAPTERS, LEFT_OUT, RESULT, conditions(RESULT))
    names = {case.name for case in cases()}
    assert names == {*RESULT}, "python -m benchmarks errors --only NAME"
    assert {name: r["fault"] for name, r in RESULT.items() if r["fault"]} == {}


def test_each_row_has_its_cells() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:3] == "| *"]
    assert len(rows) == len(cases())
    for row in rows:
        assert len(row.replace(r"\|", "").split(" | ")) == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("errors") / "files"
    make_files(made)
    return made


@pytest.mark.parametrize("name", ["a misspelt command", "a misspelt key in a file"])
def test_a_case_says_what_it_is_to_say(name: str, folder: Path) -> None:
    (case,) = (case for case in cases() if case.name == name)
    outcome = run_case(case, folder)
    assert outcome.fault(case) == ""
    assert outcome.text == RESULT[name]["text"]


def test_what_is_not_as_wanted_is_told() -> None:
    case = Case(name="x", line="bundlerun", told="wrong")
    outcome = Outcome(
        text="right", code=1, seconds=1.0, processor_s=1.0, num_steps=3, has_traceback=True
    )
    fault = "exit code 1, not 2; does not say 'wrong'; 3 steps were done; a traceback"
    assert outcome.fault(case) == fault
    result = {"x": {"text": "a | b", "code": None, "seconds": 1.0, "processor_s": 0.5, "fault": ""}}
    (row,) = [
        line for line in page(CHAPTERS[:1], (), result, "").splitlines() if "misspelt c" in line
    ]
    assert row.endswith("| not run yet | | |")
