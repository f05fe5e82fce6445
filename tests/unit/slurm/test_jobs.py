"""What Slurm answers, read; what is asked of it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from bundlerun.launcher.errors import NodeError
from bundlerun.slurm.jobs import (
    Slurm,
    SlurmError,
    config_from_text,
    job_from_text,
    run_command,
    seconds_of,
)

SHOWN = (
    "JobId=7 JobName=my job UserId=me(1000) GroupId=me(1000) MCS_label=N/A Priority=1 Nice=0 "
    "Account=(null) QOS=(null) JobState=PENDING Reason=BeginTime Dependency=(null) Requeue=1 "
    "Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 RunTime=00:00:00 TimeLimit=12:00:00 "
    "StartTime=2026-11-25T03:33:40 EndTime=Unknown Partition=low AllocNode:Sid=login:1 "
    "ReqNodeList=(null) NodeList=(null) BatchHost=n2 NumNodes=2-4 Comment=bundlerun: /a b/run "
    "WorkDir=/home/me StdErr=/home/me/out Power=\n"
)
CONFIG = "Configuration data as of 2026\nKillWait                = 30 sec\nPreemptMode  = REQUEUE\n"


class Recorder:
    """Answers as Slurm would, and keeps what it was asked."""

    def __init__(self, **answers: str) -> None:
        self.answers = answers
        self.asked: list[list[str]] = []

    def __call__(self, words: Sequence[str], text: str = "") -> str:
        self.asked.append(list(words))
        answer = self.answers.get(words[0], "")
        if answer.startswith("!"):
            raise SlurmError(answer[1:])
        return answer


def test_a_job_is_read() -> None:
    job = job_from_text(SHOWN)
    assert job is not None
    assert (job.job_id, job.state, job.reason, job.restarts) == (7, "PENDING", "BeginTime", 2)
    assert (job.nodes, job.batch_node, job.time_limit) == ("", "n2", "12:00:00")
    assert job.run_dir == "/a b/run"
    assert not job.is_over


@pytest.mark.parametrize("text", ["", "\n", "slurm_load_jobs error", "JobId=x JobState=RUNNING"])
def test_what_is_no_job_is_none(text: str) -> None:
    assert job_from_text(text) is None


def test_a_job_that_slurm_forgot_is_none() -> None:
    assert Slurm(Recorder(scontrol="!Invalid job id specified")).job(7) is None


def test_slurm_out_of_reach_is_no_forgotten_job() -> None:
    with pytest.raises(NodeError, match="Unable to contact"):
        Slurm(Recorder(scontrol="!Unable to contact slurm controller")).job(7)


@pytest.mark.parametrize(
    ("state", "restarts", "is_asked"),
    [
        ("RUNNING", 2, True),
        ("RUNNING", 3, False),  # started again already
        ("COMPLETING", 2, False),  # being cancelled
        ("CANCELLED", 2, False),
        ("PENDING", 2, False),
    ],
)
def test_only_the_running_start_is_requeued(state: str, restarts: int, is_asked: bool) -> None:
    shown = SHOWN.replace("PENDING", state).replace("Restarts=2", f"Restarts={restarts}")
    recorder = Recorder(scontrol=shown)
    assert Slurm(recorder).requeue(7, 2) is is_asked
    assert (["scontrol", "requeue", "7"] in recorder.asked) is is_asked


def test_the_id_of_a_submitted_job_is_read() -> None:
    assert Slurm(Recorder(sbatch="12;cluster\n")).submit([], "") == 12
    with pytest.raises(SlurmError, match="'odd'"):
        Slurm(Recorder(sbatch="odd")).submit([], "")


def test_settings_are_read() -> None:
    config = config_from_text(CONFIG)
    assert config["PreemptMode"] == "REQUEUE"
    assert seconds_of(config, "KillWait", 1) == 30
    assert seconds_of(config, "Missing", 1) == 1


def test_no_slurm_is_said_with_what_to_do() -> None:
    with pytest.raises(NodeError, match="no-such-program is not on the PATH"):
        run_command(["no-such-program"])


def test_a_refusal_is_told_in_slurms_words() -> None:
    with pytest.raises(SlurmError, match="bad luck"):
        run_command(["sh", "-c", "echo bad luck >&2; exit 1"])
