from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import pytest

from bundlerun.launcher.agent import kept_report as module
from bundlerun.launcher.agent.kept_report import kept_report, report_command
from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.run_folder.outcome import Outcome, write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.waiting import wait_until

WRITES = "import sys, pathlib; pathlib.Path(sys.argv[1]).open('a').write(sys.argv[2])"


class Holder:
    def __init__(self, *, is_own: bool) -> None:
        self.is_own = is_own


@pytest.fixture(autouse=True)
def matplotlib_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    # What makes a report here does not draw.
    monkeypatch.setattr(module, "find_spec", lambda _: object())


def claim(is_own: bool = True) -> Claim:
    return cast(Claim, Holder(is_own=is_own))


def writes(paths: RunPaths, is_last: bool) -> Sequence[str]:
    return [sys.executable, "-c", WRITES, str(paths.report), "last" if is_last else "one,"]


def test_it_is_made_as_the_run_goes_on_and_once_more_at_its_end(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.metrics.write_text("{}\n")
    with kept_report(paths, claim(), every_s=0.05, command=writes, most_work=1.0):
        wait_until(paths.report.exists)
        # Without a new line there is no new report.
        paths.metrics.write_text("{}\n{}\n")
        wait_until(lambda: paths.report.read_text() == "one,one,")
        write_outcome(paths, Outcome(state="done", exit_code=0, reason="all", step=2))
    # The thread may have come to the outcome before the end did.
    assert paths.report.read_text() in ("one,one,last", "one,one,one,")


def test_a_run_that_is_over_before_the_first_one_gets_none(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.metrics.write_text("{}\n")
    with kept_report(paths, claim(), every_s=600.0, command=writes):
        pass
    assert not paths.report.exists()


@pytest.mark.parametrize("kept", [{"every_s": 0.0}, {"claim": None}, {"claim": claim(False)}])
def test_only_who_holds_the_folder_makes_it_and_nobody_who_is_not_to(
    tmp_path: Path, kept: dict[str, Any]
) -> None:
    paths = RunPaths(tmp_path)
    paths.metrics.write_text("{}\n")
    used = {"claim": claim(), "every_s": 0.01, **kept}
    with kept_report(paths, used.pop("claim"), command=writes, **used):
        # One that would be made were there after so many turns of the thread.
        waited = module.threading.Event()
        waited.wait(0.3)
    assert not paths.report.exists()


def test_without_matplotlib_nothing_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    monkeypatch.setattr(module.threading.Thread, "start", lambda self: pytest.fail("started"))
    with kept_report(RunPaths(tmp_path), claim(), every_s=0.01, command=writes):
        pass


def test_a_report_that_hangs_does_not_hold_the_end_of_the_run(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.metrics.write_text("{}\n")

    def hangs(paths: RunPaths, is_last: bool) -> Sequence[str]:
        begun = paths.root / "begun"
        return [sys.executable, "-c", f"open({str(begun)!r}, 'w'); import time; time.sleep(600)"]

    with kept_report(paths, claim(), every_s=0.05, command=hangs):
        wait_until((paths.root / "begun").exists)


def test_the_command_is_a_module_that_is_there(tmp_path: Path) -> None:
    words = report_command(RunPaths(tmp_path), True)
    assert find_spec(words[2]) is not None
    assert words[3:] == [str(tmp_path), "--last"]
