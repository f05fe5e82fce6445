"""`make gpu` on the stand-in: the program and every case, with tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.gpu.listed import CASES
from benchmarks.gpu.report import FILE, LOG
from benchmarks.gpu.runner import ROOT

# Three minutes; of what a case uses the stand-in's own tests run in each.
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """The exit code, the file and the log of a whole run."""
    out = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks", "gpu", "--stand-in", "--out", str(out)]
    code = subprocess.run(command, cwd=ROOT, timeout=900).returncode
    return code, json.loads((out / FILE).read_text()), (out / LOG).read_text()


@pytest.mark.timeout(1000)
def test_all_that_the_stand_in_can_show_is_as_wanted(
    done: tuple[int, dict[str, Any], str],
) -> None:
    code, found, log = done
    bad = [each for each in found["findings"] if each["ok"] not in ("yes", "-", "needs a GPU")]
    assert (bad, code) == ([], 0), log


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_finds_something_and_shows_no_figure_of_a_gpu(
    case: Any, done: tuple[int, dict[str, Any], str]
) -> None:
    findings = [each for each in done[1]["findings"] if each["case"] == case.name]
    assert findings
    assert case.name in done[1]["seconds"]
    for each in findings:
        is_shown = each["ok"] != "needs a GPU"
        assert is_shown or (each["measured"] in ("ran", "-") and each["value"] is None), each


def test_the_file_says_what_stood_for_the_gpu(done: tuple[int, dict[str, Any], str]) -> None:
    assert done[1]["device"] == "stand-in"


MISTAKE = """
import sys, torch
from pathlib import Path
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.stand_in import StandIn
bench = Bench("T", 1, disk=Path(), memory=Path(), is_gpu=False, stand_in=StandIn())
numbers = torch.zeros(100, device=bench.device)
numbers.add_(1.0)
module = torch.get_device_module(bench.device)
if sys.argv[1] == "reads too early":
    with module.stream(module.Stream()):
        numbers.mul_(2.0)
bench.drain()
bench.check()
"""


@pytest.mark.parametrize("is_wrong", [True, False])
def test_a_case_that_forgets_to_wait_is_told_of_it(is_wrong: bool) -> None:
    word = "reads too early" if is_wrong else "waits"
    command = [sys.executable, "-c", MISTAKE, word]
    found = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=200)
    assert found.returncode == 0
    assert ('"ok": "NO"' in found.stdout) == is_wrong, found.stdout
