"""`bundlerun submit`: what it refuses, what it writes, what it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.checks import site_notes
from bundlerun.slurm.request import limit_seconds
from tests.unit.slurm.conftest import FakeSlurm

MODEL = f"{Path(__file__).resolve().parents[2] / 'ranks' / 'tiny_model.py'}:build"
TRAIN = (f"--model={MODEL}", "--cut=second", "--image-size=8", "synthetic")
NODES = ("--nodes=2:4", "--gpus-per-node=2", "--time=1:00:00")


def submit(*words: str) -> int:
    return main(["submit", *words])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes=4:2", "--", *TRAIN], "--nodes '4:2' is neither"),
        (["--nodes=2", "--", *TRAIN], "--gpus-per-node is missing"),
        (["--nodes=1", "--gpus-per-node=1", "--", *TRAIN], "do not hold one bundle of shape 1,1"),
        ([*NODES, "--time=0:01:00", "--", *TRAIN], "--time 0:01:00 leaves nothing to train in"),
        ([*NODES, "--time=soon", "--", *TRAIN], "--time 'soon' is no time limit"),
        ([*NODES, "--kind=classic", "--", *TRAIN], "--kind classic has a fixed number of nodes"),
        ([*NODES, "--spares=-1", "--", *TRAIN], "--spares -1 must be 0 or more"),
        ([*NODES, "--", "--nnodes=3", *TRAIN], "--nnodes is set by the batch script"),
        ([*NODES, "--", "--modle=x", *TRAIN], "unknown option --modle; nearest: --model"),
        ([*NODES], "DATA is missing"),
        ([*NODES, "--", '--run-dir=a"b', *TRAIN], "has a quote"),
        ([*NODES, "--dry-run", "--kind=array", "--", *TRAIN], "fixed number of nodes"),
        (["--gpus-per-node=2", "--kind=array", "--", *TRAIN], "--array and --kind array"),
        ([*NODES, "--", f"--model={MODEL}", "--cut=secnod", "synthetic"], "secnod"),
        ([*NODES, "--", "/no/such/data"], "no data at '/no/such/data'"),
    ],
)
def test_what_cannot_run_does_not_reach_the_queue(
    words: list[str], message: str, slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = submit(*words)
    except SystemExit as exc:
        code = int(str(exc.code))
    assert code in (2, 3)
    assert message in capsys.readouterr().err
    assert not any(asked.startswith("sbatch") for asked in slurm.asked)


def test_a_job_is_submitted(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "my run"
    slurm.program("sbatch", f'cat > "{tmp_path}/script"; echo 12')
    options = ("--sbatch=--constraint=a100 --mail-type=END", "--sbatch=--nice")
    assert submit(*NODES, *options, "--", f"--run-dir={run_dir}", *TRAIN) == 0
    asked = [line for line in slurm.asked if line.startswith("sbatch")]
    assert asked == ["sbatch --parsable --constraint=a100 --mail-type=END --nice"]
    said = capsys.readouterr().out
    assert "job 12 is submitted" in said
    assert f"bundlerun status '{run_dir}'" in said
    assert "scancel 12" in said
    text = (tmp_path / "script").read_text()
    for line in (
        "#SBATCH --nodes=2-4",
        "#SBATCH --gpus-per-node=2",
        "#SBATCH --time=1:00:00",
        "#SBATCH --no-kill",
        f'#SBATCH --comment="bundlerun: {run_dir}"',
        f"RUN_DIR='{run_dir}'",
        "MIN_NODES=2",
    ):
        assert f"{line}\n" in text
    assert "--run-dir" not in text.split("set -- ")[1].splitlines()[0]
    subprocess.run(["bash", "-n"], input=text, text=True, check=True, timeout=30)


def test_spares_are_nodes_beside(slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit(*NODES, "--spares=1", "--dry-run", "--", *TRAIN) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --nodes=2-5\n" in text
    assert "SPARES=1\n" in text
    assert not slurm.asked


def test_runs_of_an_array_have_folders_of_their_own(
    slurm: FakeSlurm, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--kind=array", "--array=0-3", "--gpus-per-node=2", "--dry-run", "--")
    assert submit(*words, "--run-dir=/r", *TRAIN) == 0
    text = capsys.readouterr().out
    assert "#SBATCH --array=0-3\n" in text
    assert 'RUN_DIR=/r/"$SLURM_ARRAY_TASK_ID"\n' in text


def test_a_run_folder_in_the_queue_is_refused(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.answer("squeue", f"3|PENDING|\n4|PENDING|bundlerun: {tmp_path}\n")
    assert submit(*NODES, "--", f"--run-dir={tmp_path}", *TRAIN) == 2
    assert "in use by job 4 (PENDING)" in capsys.readouterr().err


def test_a_run_folder_of_a_running_job_is_refused(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunPaths(tmp_path).slurm_job.write_text('{"job_id": 7, "nonce": "x"}')
    assert submit(*NODES, "--", f"--run-dir={tmp_path}", *TRAIN) == 2
    assert "in use by job 7 (RUNNING)" in capsys.readouterr().err


def test_a_limit_below_one_checkpoint_interval_is_refused(
    slurm: FakeSlurm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"kind": "step", "step": step, "time": 100.0 * step} for step in (1, 3)]
    RunPaths(tmp_path).metrics.write_text("\n".join(map(json.dumps, rows)))
    words = ("--checkpoint-steps=50", f"--run-dir={tmp_path}", *TRAIN)
    assert submit(*NODES, "--", *words) == 2
    assert "shorter than --checkpoint-steps 50 of 1e+02 s each" in capsys.readouterr().err


def test_without_slurm_it_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit(*NODES, "--", *TRAIN) == 3
    assert "scontrol is not on the PATH" in capsys.readouterr().err


def test_a_dry_run_needs_neither_slurm_nor_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from bundlerun.launcher.cli import main\n"
        f"code = main({['submit', *NODES, '--dry-run', '--', *TRAIN]!r})\n"
        "print('torch' in sys.modules, code, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PATH": "/nowhere"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr.strip().endswith("False 0")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 300), ("5:30", 330), ("1:02:03", 3723), ("1-0", 86400), ("1-2:03", 93780)],
)
def test_time_limits_are_read_as_slurm_does(text: str, seconds: int) -> None:
    assert limit_seconds(text) == seconds


def test_settings_of_the_site_that_matter_are_told() -> None:
    notes = list(site_notes({"PreemptMode": "GANG,CANCEL", "KillWait": "5 sec"}))
    assert "PreemptMode=GANG,CANCEL" in notes[0]
    assert "KillWait=5" in notes[1]
    assert not list(site_notes({"PreemptMode": "REQUEUE", "KillWait": "30 sec"}))
