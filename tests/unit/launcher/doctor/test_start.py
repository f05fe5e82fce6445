"""What every start asks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.doctor import start
from bundlerun.launcher.doctor.findings import error, ok, warning
from bundlerun.launcher.doctor.machine import MachineFacts
from bundlerun.launcher.doctor.start import check_installed, check_start, findings_of, judge
from bundlerun.launcher.errors import NodeError
from tests.unit.launcher.doctor.test_machine import GOOD as MACHINE
from tests.unit.launcher.doctor.test_versions import GOOD as VERSIONS


def test_errors_stop_and_warnings_are_a_line_each() -> None:
    told: list[str] = []
    judge([ok("a", "fine"), warning("b", "slow", "mend it")], told.append)
    assert told == ["warning: b: slow; mend it"]
    with pytest.raises(NodeError, match=r"c: no; do; d: never; undo; bundlerun doctor tells more"):
        judge([error("c", "no", "do"), error("d", "never", "undo")], told.append)


def test_what_may_be_slow_and_what_is_other_peoples_work_is_not_told() -> None:
    busy: MachineFacts = replace(MACHINE, load=900.0, quota=0.5, open_files=(256, 256))
    assert all(each.level == "ok" for each in findings_of(VERSIONS, busy))


def test_a_driver_matters_to_those_who_use_gpus() -> None:
    old = replace(VERSIONS, driver="450.1")
    assert "error" in [each.level for each in findings_of(old, MACHINE)]
    cpu = findings_of(replace(old, num_gpus=0), MACHINE)
    assert "error" not in [each.level for each in cpu]


def test_this_machine_can_start() -> None:
    check_start({}, 0, lambda line: None)
    check_installed({}, lambda line: None)


def test_a_run_stops_at_an_error_before_it_claims_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unlike = replace(VERSIONS, torchvision="0.27.0", num_gpus=0)
    monkeypatch.setattr(start, "read_versions", lambda environ, num_gpus: unlike)
    run_dir = tmp_path / "run"
    words = ["run", "--devices", "cpu", "--slots", "2", "--run-dir", str(run_dir), "synthetic"]
    assert main(words) == 3
    assert (
        "error: torchvision: 0.27.0 goes with torch 2.12, and torch is" in capsys.readouterr().err
    )
    assert not run_dir.exists()


def test_one_node_prints_one_document(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main(["doctor", "--quick", "--json", "--devices", "cpu", "--run-dir", str(tmp_path)])
    report = json.loads(capsys.readouterr().out)
    assert report.keys() == {"seconds", "nodes", "between", "links"}
    levels = {each["subject"]: each["level"] for each in report["nodes"][0]["findings"]}
    assert levels.keys() >= {"python", "torch", "torchvision", "cores", "/dev/shm", "run folder"}
    assert code == (3 if "error" in levels.values() else 0)
    assert list(tmp_path.iterdir()) == []
