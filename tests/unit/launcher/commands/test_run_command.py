"""What `bundlerun run` refuses or tells before torch is imported."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

import pytest

from bundlerun.launcher.agreement.agreed import terms_of
from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.agreement.continuation import keep_terms
from bundlerun.launcher.cli import main
from bundlerun.launcher.commands import run as run_command
from bundlerun.launcher.commands.run import holder_of
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.meeting.network import resolve_meeting
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.holder import Holder
from bundlerun.launcher.run_folder.paths import RunPaths

RUN = "run --devices cpu --slots 1 --shape 1"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run folder here, and no way to start anything."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "bundlerun.launcher.agent.elastic", None)
    for name in [n for n in os.environ if n.startswith(("SLURM_", "OMPI_", "PMI_", "PET_"))]:
        monkeypatch.delenv(name)


def refused(words: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(shlex.split(words)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    return err


def test_two_that_mpirun_starts_on_a_node_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("RANK", 0), ("SIZE", 2), ("LOCAL_RANK", 0), ("LOCAL_SIZE", 2)):
        monkeypatch.setenv(f"OMPI_COMM_WORLD_{name}", str(value))
    err = refused(f"{RUN} --run-dir run synthetic", capsys)
    assert "process 0 of 2 that Open MPI started, 2 on this node" in err
    assert not Path("run").exists()


def test_torchruns_variables_are_shown_by_plan_with_their_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PET_RDZV_ID", "a-job")
    monkeypatch.setenv("PET_MAX_RESTARTS", "4")
    assert main(shlex.split("plan --json --devices cpu --shape 1 synthetic")) == 0
    launch = json.loads(capsys.readouterr().out)["launch"]
    assert launch["rdzv_id"] == {"value": "a-job", "source": "environment PET_RDZV_ID"}
    assert launch["max_restarts"] == {"value": 4, "source": "environment PET_MAX_RESTARTS"}


def test_two_pods_that_are_told_of_each_other_need_a_place_to_meet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PET_NNODES", "2")
    assert "--nnodes 2 needs --rdzv-endpoint" in refused(f"{RUN} --run-dir run synthetic", capsys)


def test_a_wrong_variable_of_torchruns_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PET_MAX_RESTARTS", "often")
    err = refused(f"{RUN} --run-dir run synthetic", capsys)
    assert "environment PET_MAX_RESTARTS: max_restarts 'often' is not a whole number" in err


def test_several_nodes_need_one_run_folder(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = "--nnodes 2 --rdzv-endpoint 10.0.0.1:29400"
    assert "give all of them the same --run-dir" in refused(f"{RUN} {nodes} synthetic", capsys)


def test_a_folder_in_use_is_refused_with_who_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    other = Holder.of_process("x", "a test", pid=os.getppid())
    with Claim(RunPaths(Path("run")), other, print).take():
        err = refused(f"{RUN} --run-dir run synthetic", capsys)
    assert f"run folder 'run' is in use by process {other.pid} on node " in err


def test_another_run_in_an_old_folder_is_refused_with_what_differs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = RunPaths(Path("run"))
    keep_terms(paths, terms_of(TrainConfig(data="synthetic", shape=Shape((1,)))))
    write_text(paths.metrics, '{"step": 4}\n')
    err = refused(f"{RUN} --run-dir run --optimizer adamw --lr 0.3 synthetic", capsys)
    assert "the run in 'run' cannot go on so: --optimizer was sgd, is adamw; give another" in err


def job_of(launch: LaunchConfig, environ: dict[str, str] | None = None) -> str:
    return holder_of(launch, environ or {}, "n1", resolve_meeting(launch)).job


def nodes(endpoint: str, **more: str) -> LaunchConfig:
    return LaunchConfig(
        nnodes="2", rdzv_endpoint=endpoint, local_addr="127.0.0.1", **({"rdzv_id": "job"} | more)
    )


def test_a_run_that_is_done_is_refused_only_with_data_that_is_none(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="bundlerun")
    monkeypatch.setattr(run_command, "why_done", lambda *_: "the run is done already")
    Path("empty").mkdir()
    assert "DATA 'empty' has no folder 'train'" in refused(f"{RUN} --run-dir run empty", capsys)
    assert main(shlex.split(f"{RUN} --run-dir run synthetic")) == 0
    assert "the run is done already" in caplog.text


def test_nodes_of_one_job_are_one_holder_and_two_commands_are_two() -> None:
    assert job_of(nodes("127.0.0.1:1")) == job_of(nodes("127.0.0.1:1"))
    assert job_of(nodes("127.0.0.1:1")) != job_of(nodes("127.0.0.2:1"))
    assert job_of(LaunchConfig()) != job_of(LaunchConfig())


def test_an_endpoint_may_be_written_in_many_ways() -> None:
    assert job_of(nodes("localhost:29400")) == job_of(nodes("127.0.0.1"))


def test_all_starts_of_a_slurm_step_are_one_holder() -> None:
    environ = {"SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    first = job_of(LaunchConfig(rdzv_id="slurm-7.0-r0"), environ)
    again = environ | {"SLURM_RESTART_COUNT": "1"}
    assert first == job_of(LaunchConfig(rdzv_id="slurm-7.0-r1"), again)


def test_parts_of_a_heterogeneous_job_are_one_holder() -> None:
    both = nodes("127.0.0.1:1", rdzv_id="both")
    environ = {"SLURM_STEP_NODELIST": "n1", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    assert job_of(both, environ) == job_of(both, environ | {"SLURM_JOB_ID": "8"})
