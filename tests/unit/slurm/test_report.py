"""Status and drain know a run by its job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.jobs import job_from_text
from bundlerun.slurm.report import report_of
from tests.unit.slurm.conftest import FakeSlurm
from tests.unit.slurm.test_jobs import SHOWN


def test_a_job_that_waits_says_why() -> None:
    job = job_from_text(SHOWN)
    assert job is not None
    text = str(report_of(job))
    assert text.startswith("7, PENDING, 2 requeues; waits: BeginTime (Slurm starts a requeued")
    assert text.endswith("start 2026-11-25T03:33:40")


def test_a_running_job_waits_for_nothing() -> None:
    shown = SHOWN.replace("PENDING", "RUNNING").replace(" NodeList=(null)", " NodeList=n[1-2]")
    job = job_from_text(shown)
    assert job is not None
    assert str(report_of(job)) == "7, RUNNING, 2 requeues, on n[1-2]"


def of_folder(slurm: FakeSlurm, run_dir: Path) -> None:
    """Job 7 has `run_dir`."""
    run_dir.mkdir(exist_ok=True)
    RunPaths(run_dir).slurm_job.write_text('{"job_id": 7, "nonce": "x"}')
    shown = (slurm.folder / "job").read_text()
    (slurm.folder / "job").write_text(shown.replace("/a b/run", str(run_dir)))


def test_status_by_job(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_folder(slurm, tmp_path / "my run")
    assert main(["status", "7"]) == 0
    assert "slurm job    7, RUNNING, 0 requeues" in capsys.readouterr().out
    assert main(["status", str(tmp_path / "my run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["slurm"]["state"] == "RUNNING"


def test_status_without_slurm_still_tells_of_the_run(
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    of_folder(slurm, tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    assert main(["status", str(tmp_path)]) == 0
    assert "slurm job    7; scontrol is not on the PATH" in capsys.readouterr().out


def test_drain_by_job(slurm: FakeSlurm, tmp_path: Path) -> None:
    of_folder(slurm, tmp_path)
    assert main(["drain", "7"]) == 0
    assert RunPaths(tmp_path).drain.exists()


def test_a_job_that_is_not_ours_is_refused(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = (slurm.folder / "job").read_text()
    (slurm.folder / "job").write_text(shown.replace("bundlerun: ", ""))
    assert main(["drain", "7"]) == 2
    assert "job 7 (RUNNING) tells no run folder" in capsys.readouterr().err
