"""One start of a job, with a shell in srun's place."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.continuation import newest_step
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm import batch
from bundlerun.slurm.batch import Batch, BatchJob, run_dir_of
from bundlerun.slurm.jobs import Slurm
from tests.unit.slurm.conftest import FakeSlurm

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 60


def outcome(state: str, code: int = 0) -> str:
    body = {"state": state, "exit_code": code, "reason": "why", "step": 3, "first_error": None}
    return json.dumps(body)


def words(run_dir: Path, script: str) -> list[str]:
    """The step; its script finds the run folder in $2."""
    return ["sh", "-c", script, "step", "--run-dir", str(run_dir)]


def environ(slurm: FakeSlurm, restarts: int = 0) -> dict[str, str]:
    job = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
    return slurm.environ | job | ({"SLURM_RESTART_COUNT": str(restarts)} if restarts else {})


def run(
    slurm: FakeSlurm, run_dir: Path, script: str, *options: str, restarts: int = 0
) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "bundlerun.slurm.batch", *options, "--", *words(run_dir, script)],
        env=environ(slurm, restarts),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    return done.returncode, done.stderr


def test_a_finished_run_ends_the_job_with_0(slurm: FakeSlurm, tmp_path: Path) -> None:
    script = f"""echo '{outcome("done")}' > "$2/outcome.json"; exit 137"""
    code, said = run(slurm, tmp_path / "run", script)
    assert code == 0, said
    assert "the run is finished" in said
    assert "scontrol requeue 7" not in slurm.asked


def test_an_outcome_of_an_earlier_start_is_none(slurm: FakeSlurm, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.outcome.write_text(outcome("done"))
    assert run(slurm, tmp_path, "exit 3")[0] == 3


def test_a_requeued_job_whose_run_is_finished_ends_at_once(
    slurm: FakeSlurm, tmp_path: Path
) -> None:
    RunPaths(tmp_path).outcome.write_text(outcome("done"))
    code, said = run(slurm, tmp_path, "echo began; exit 1", restarts=1)
    assert code == 0
    assert "was finished before" in said


def test_a_signal_becomes_a_request_and_then_a_requeue(slurm: FakeSlurm, tmp_path: Path) -> None:
    script = f"""
        kill -USR1 $PPID
        while [ ! -e "$2/drain.json" ]; do sleep 0.05; done
        echo '{outcome("stopped", 75)}' > "$2/outcome.json"
        exit 75
    """
    slurm.job("RUNNING", requeue="kill -TERM $PPID")
    code, said = run(slurm, tmp_path, script)
    assert code == 75
    assert "SIGUSR1: the run is told to write a checkpoint" in said
    assert "requeue 1 of 20" in said
    assert "scontrol requeue 7" in slurm.asked


def test_a_job_that_is_cancelled_is_not_requeued(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.job("COMPLETING")
    code, _ = run(slurm, tmp_path, "exit 137")
    assert code == 75
    assert "scontrol requeue 7" not in slurm.asked


def test_the_budget_is_kept(slurm: FakeSlurm, tmp_path: Path) -> None:
    slurm.job("RUNNING", restarts=2)
    code, said = run(slurm, tmp_path, "exit 137", "--requeue-budget=2", restarts=2)
    assert code == 1
    assert "the requeue budget of 2 is used up" in said
    # A survivor may requeue without counting: the next start counts for it.
    code, said = run(slurm, tmp_path, "echo began", "--requeue-budget=2", restarts=3)
    assert code == 1
    assert "not started again" in said


def test_starts_that_come_no_further_end(slurm: FakeSlurm, tmp_path: Path) -> None:
    for restarts in range(3):
        slurm.job("RUNNING", restarts=restarts, requeue="kill -TERM $PPID")
        code, said = run(slurm, tmp_path, "exit 137", restarts=restarts)
    assert code == 1
    assert "3 starts in a row made no step beyond 0" in said


def test_the_step_learns_what_its_nodes_must_have(slurm: FakeSlurm, tmp_path: Path) -> None:
    script = 'env | grep ^BUNDLERUN_SLURM > "$2/seen"; cat "$2/slurm-job.json" >> "$2/seen"'
    run(slurm, tmp_path, script)
    seen = (tmp_path / "seen").read_text()
    claim = json.loads(RunPaths(tmp_path).slurm_job.read_text())
    assert f"BUNDLERUN_SLURM_NONCE={claim['nonce']}" in seen
    assert '"torch"' in seen


def test_the_first_nodes_pulse_moves_while_the_step_lasts(slurm: FakeSlurm, tmp_path: Path) -> None:
    script = """
        beats() { cat "$2/slurm-pulse" 2>/dev/null; }
        until first=$(beats) && [ -n "$first" ]; do sleep 0.05; done
        until [ -n "$(beats)" ] && [ "$(beats)" != "$first" ]; do sleep 0.05; done
    """.replace("$2", str(tmp_path))
    assert run(slurm, tmp_path, script)[0] == 0
    assert not RunPaths(tmp_path).slurm_pulse.exists()


def test_a_step_outlives_no_run(
    slurm: FakeSlurm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, handlers: None
) -> None:
    monkeypatch.setattr(batch, "LINGER_S", 0.1)
    script = f"""echo '{outcome("done")}' > "$2/outcome.json"; exec sleep 600"""
    said: list[str] = []
    job = BatchJob(job_id=7, restarts=0, node="n1")
    started = Batch(job, RunPaths(tmp_path), budget=20, slurm=Slurm(), say=said.append)
    assert started.run(words(tmp_path, script), os.environ) == 0
    assert "srun still waits" in said[0]


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in batch.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_the_run_folder_is_the_steps_own() -> None:
    assert run_dir_of(["srun", "--run-dir=/a", "x", "--run-dir", "/b"]) == Path("/b")
    assert run_dir_of(["--run_dir", "/a", "--x"]) == Path("/a")
    with pytest.raises(ConfigError, match="no --run-dir"):
        run_dir_of(["srun", "x"])


def test_outside_a_job_nothing_starts() -> None:
    with pytest.raises(ConfigError, match="with sbatch"):
        BatchJob.from_environ({})


def test_how_far_a_run_is(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert newest_step(paths) == 0
    paths.checkpoint(4).mkdir(parents=True)
    assert newest_step(paths) == 4
    paths.metrics.write_text('{"kind": "step", "step": 9}\n{"kind": "epoch"}\n{"cut sh')
    assert newest_step(paths) == 9
