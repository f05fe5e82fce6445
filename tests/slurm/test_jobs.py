"""The batch scripts on a real Slurm, and what becomes of a job when something fails."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path

import pytest

from benchmarks.cluster.slurm_jobs import NUM_STEPS, SCRIPTS, SMALL, Jobs, train_words
from bundlerun.slurm.render import DEFAULTS, Kind, script
from bundlerun.slurm.watch.lookout import LOSS_S
from tests.slurm.harness import ended_well

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(400)]
slow = pytest.mark.slow
LONG = 240
"""Steps of a run in which something takes its time."""


def uneven_script() -> str:
    """The script without a number of GPUs per node."""
    text = script(DEFAULTS[Kind.BUNDLE])
    kept = [line for line in text.splitlines() if "--gpus-per-node" not in line]
    return "\n".join(kept) + "\n"


def test_nodes_of_different_size_go_on_without_one_that_crashes(
    jobs: Jobs, wanted_loss: float
) -> None:
    where = ("--nodes=3", "--nodelist=n1,n2,n3", "--gpus=7", "--mincpus=2", "--time=10")
    job = jobs.submit(train_words(), *where, script=uneven_script())
    job.wait_step(10)
    assert "3 bundles of shape 1,1 on 3 nodes" in job.output()
    assert len(list((job.paths.node_logs("n3")).glob("slurm-*/attempt_0/*"))) == 2
    with job.fault("node crashes"):
        job.cluster.crash("n2")
    ended_well(job, wanted_loss)
    assert job.show().restarts == 0


@slow
def test_the_first_node_is_powered_off(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    job.wait_step(10)
    with job.fault("first of three nodes powered off"):
        job.cluster.power_off(job.show().batch_node)
        job.wait_requeued()
    ended_well(job, wanted_loss)


@slow
def test_the_first_node_crashes(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL)
    job.wait_step(10)
    first = job.show().batch_node
    with job.fault("first of two nodes crashes"):
        job.cluster.crash(first)
        job.wait_requeued()
    ended_well(job, wanted_loss)


@slow
def test_a_node_is_powered_off_and_a_spare_takes_its_place(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL, SPARES=1)
    job.wait_step(10)
    assert "2 bundles of shape 1,1 on 2 nodes" in job.output()
    nodes = job.events("coordinator: round")[-1]["nodes"]
    lost = next(name for name in nodes if name != job.show().batch_node)
    with job.fault("node powered off, a spare steps in"):
        job.cluster.power_off(lost)
    assert len(job.events("coordinator: round")[-1]["nodes"]) == 2
    ended_well(job, wanted_loss)


@slow
@pytest.mark.parametrize("name", ["USR1", "TERM"])
def test_a_signal_to_the_batch_script(jobs: Jobs, wanted_loss: float, name: str) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL)
    job.wait_step(10)
    with job.fault(f"scancel --batch --signal={name}"):
        job.cluster.run("scancel", "--batch", f"--signal={name}", job.job_id)
        job.wait_requeued()
    assert job.rows("restart")[-1]["source"] == "checkpoint"
    ended_well(job, wanted_loss)


@slow
def test_an_operator_requeues(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL)
    job.wait_step(10)
    with job.fault("scontrol requeue"):
        job.cluster.run("scontrol", "requeue", job.job_id)
        job.wait_requeued()
    ended_well(job, wanted_loss)
    assert job.show().restarts == 1


@slow
def test_a_job_of_higher_priority_takes_the_nodes(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=4", *SMALL)
    job.wait_step(10)
    with job.fault("preemption"):
        other = jobs.cluster.run(
            *("sbatch", "--parsable", "--partition=high", "--nodes=4", "--exclusive"),
            *("--output=/dev/null", "--time=5", "--wrap=sleep 5"),
        ).strip()
        job.wait_requeued()
    assert "COMPLETED" in jobs.cluster.run("scontrol", "show", "job", other)
    ended_well(job, wanted_loss)


@slow
def test_the_time_limit(jobs: Jobs) -> None:
    """The signal comes some 40 s after the start; the next start has as long as it likes."""
    words = train_words(synthetic_samples=20 * LONG)
    limit = ("--gpus-per-node=2", "--mincpus=2", "--time=2", "--signal=B:USR1@80")
    job = jobs.submit(words, "--nodes=2", *limit)
    job.wait_step(10)
    with job.fault("time limit"):
        job.wait_requeued()
        job.cluster.run("scontrol", "update", f"jobid={job.job_id}", "TimeLimit=30")
    assert job.wait_over() == "COMPLETED", job.story()
    assert job.summary()["steps"] == 2 * LONG
    assert job.show().restarts == 1


@slow
def test_slurmd_is_killed_and_comes_back(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(synthetic_samples=20 * LONG // 2), "--nodes=3", *SMALL)
    job.wait_step(10)
    cluster, last = job.cluster, job.show().nodes
    lost = "n3"
    assert last == "n[1-3]"
    cluster.kill_slurmd(lost)
    job.wait("slurmctld to notice", lambda: "down" in cluster.node_states()[lost])
    job.wait_step(job.step() + 3)
    assert not job.rows("restart")
    with job.fault("slurmd back, kills its tasks"):
        cluster.start_slurmd(lost)
    assert job.wait_over() == "COMPLETED", job.story()
    job.leaves_nothing()


@slow
def test_a_link_is_cut_and_healed(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    job.wait_step(10)
    with job.fault("link cut"):
        job.cluster.cut("n3")
    with job.fault("link healed, node rejoins"):
        job.cluster.heal("n3")
    assert len(job.events("coordinator: round")[-1]["nodes"]) == 3
    ended_well(job, wanted_loss)


@slow
@pytest.mark.parametrize("num_nodes", [2, 3])
def test_the_first_nodes_cable_is_no_death(jobs: Jobs, wanted_loss: float, num_nodes: int) -> None:
    words = train_words(synthetic_samples=20 * LONG // 2)
    job = jobs.submit(words, f"--nodes={num_nodes}", *SMALL)
    job.wait_step(10)
    with job.fault(f"first of {num_nodes} nodes cut off"):
        job.cluster.cut(job.show().batch_node)
    time.sleep(LOSS_S + 4)  # long enough to be taken for dead, were it not for the pulse
    with job.fault("it is back, and takes part again"):
        job.cluster.heal(job.show().batch_node)
    assert job.wait_over() == "COMPLETED", job.story()
    assert job.show().restarts == 0
    assert job.summary()["steps"] == LONG
    job.leaves_nothing()


@slow
def test_a_node_is_set_down_and_resumed(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    job.wait_step(10)
    with job.fault("node set down"):
        job.cluster.run("scontrol", "update", "nodename=n3", "state=down", "reason=test")
    job.cluster.run("scontrol", "update", "nodename=n3", "state=resume")
    ended_well(job, wanted_loss)


@slow
def test_the_controller_is_restarted(jobs: Jobs, wanted_loss: float) -> None:
    job = jobs.submit(train_words(), "--nodes=3", *SMALL)
    job.wait_step(10)
    job.cluster.kill_controller()
    job.wait_step(job.step() + 10)
    job.cluster.start_controller()
    ended_well(job, wanted_loss)
    assert not job.rows("restart")


@slow
def test_two_jobs_share_nodes(jobs: Jobs, wanted_loss: float) -> None:
    where = ("--nodes=2", "--nodelist=n1,n2", "--gpus-per-node=1", "--mincpus=2", "--time=10")
    both = [jobs.submit(train_words(), *where, name=name) for name in ("one", "two")]
    for job in both:
        job.wait_step(5)
    assert [job.show().state for job in both] == ["RUNNING", "RUNNING"]
    for job in both:
        ended_well(job, wanted_loss)
        assert not job.rows("restart")


@slow
def test_a_run_of_fixed_size_starts_again(jobs: Jobs) -> None:
    """Once Slurm has noticed; what no checkpoint has is lost with the nodes."""
    script = SCRIPTS / "classic.sbatch"
    job = jobs.submit(train_words(checkpoint_steps=5), "--nodes=2", *SMALL, script=script)
    job.wait_step(10)
    with job.fault("classic: the other node crashes"):
        job.cluster.crash("n2" if job.show().batch_node == "n1" else "n1")
        job.wait_requeued()
    assert job.rows("restart")[-1]["step"] >= 5
    assert job.wait_over() == "COMPLETED", job.story()
    assert job.summary()["steps"] == NUM_STEPS


@slow
def test_an_array_has_a_run_for_each_task(jobs: Jobs) -> None:
    text = (SCRIPTS / "array.sbatch").read_text()
    folder = jobs.folder / "many"
    text = text.replace("runs/slurm-$SLURM_ARRAY_JOB_ID", str(folder))
    jobs.cluster.run(
        *("sbatch", f"--chdir={jobs.folder}", "--wait", "--array=0-1", *SMALL),
        f"--export=ALL,PYTHON={sys.executable}",
        str(_file(jobs.folder / "array.sbatch", text)),
        *train_words(),
        limit_s=150,
    )
    losses = [(folder / str(task) / "summary.json").read_text() for task in range(2)]
    assert losses[0] != losses[1]  # another seed


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@slow
def test_a_person_drains(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL)
    job.wait_step(10)
    bundlerun = str(Path(sys.executable).with_name("bundlerun"))
    job.cluster.run(bundlerun, "drain", str(job.run_dir))
    assert job.wait_over() == "FAILED"
    assert job.exit_code == "75:0"
    assert job.show().restarts == 0
    assert "stopped, not finished" in job.output()
    job.leaves_nothing()


@slow
def test_a_cancelled_job_stays_away(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL)
    job.wait_step(10)
    job.cluster.run("scancel", job.job_id)
    job.wait("end", lambda: job.show().state == "CANCELLED")
    job.leaves_nothing()
    time.sleep(3)  # longer than a requeue takes to show
    assert job.show().state == "CANCELLED"
    assert job.show().restarts == 0


@slow
def test_a_used_up_budget_ends_the_job(jobs: Jobs) -> None:
    job = jobs.submit(train_words(), "--nodes=2", *SMALL, REQUEUE_BUDGET=0)
    job.wait_step(5)
    job.cluster.crash(job.show().batch_node)
    job.wait_requeued()
    assert job.wait_over() == "FAILED", job.story()
    assert "the requeue budget of 0 is used up" in job.output()
    assert job.show().restarts == 1


@slow
def test_a_doctor_examines_the_nodes_of_its_allocation(jobs: Jobs) -> None:
    bundlerun = str(Path(sys.executable).with_name("bundlerun"))
    words = [bundlerun, "doctor", "--json", "--devices=cpu", f"--run-dir={jobs.folder / 'run'}"]
    salloc = ("salloc", "--nodes=3", "--mincpus=2", "--time=5")
    report = json.loads(jobs.cluster.run(*salloc, *words, limit_s=180))
    assert len({node["name"] for node in report["nodes"]}) == 3
    assert len(report["links"]) == 6
    assert {link["port"] for link in report["links"]} == {"ok"}
    assert [each for each in report["between"] if each["level"] == "error"] == []


@slow
def test_srun_alone(jobs: Jobs, wanted_loss: float) -> None:
    """No script: bundlerun, and then a bare torchrun."""
    folder, bundlerun = jobs.folder, str(Path(sys.executable).with_name("bundlerun"))
    srun = ("srun", "--nodes=2", "--ntasks-per-node=1", "--mincpus=2", f"--chdir={folder}")
    words = train_words(run_dir=folder / "ours", epochs=1)
    jobs.cluster.run(*srun, "--gpus-per-node=2", bundlerun, "run", *words, limit_s=120)
    assert (folder / "ours" / "summary.json").exists()
    words = train_words(run_dir=folder / "bare", epochs=1)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=2"]
    meeting = ["--rdzv-backend=bundle", "--rdzv-id=bare"]
    endpoint = f"--rdzv-endpoint={jobs.cluster.address('n1')}:29400"
    words = [*torchrun, *meeting, endpoint, "-m", "bundlerun.workers.train", *words]
    jobs.cluster.run(*srun, *words, limit_s=120)
    assert (folder / "bare" / "summary.json").exists()
    summary = json.loads((folder / "bare" / "summary.json").read_text())
    assert summary["steps"] == NUM_STEPS // 2


@slow
def test_parts_of_a_heterogeneous_job_train_together(jobs: Jobs, wanted_loss: float) -> None:
    folder, bundlerun = jobs.folder, Path(sys.executable).with_name("bundlerun")
    words = shlex.join(train_words(run_dir=folder / "run"))
    text = f"""#!/bin/bash
#SBATCH --nodes=1 --gpus-per-node=2 --mincpus=2
#SBATCH hetjob
#SBATCH --nodes=1 --gpus-per-node=3 --mincpus=2
srun --het-group=0,1 --ntasks-per-node=1 {bundlerun} run {words}
"""
    log = folder / "out"
    file = _file(folder / "het.sbatch", text)
    jobs.cluster.run("sbatch", "--wait", f"--output={log}", str(file), limit_s=150)
    assert "2 bundles of shape 1,1 on 2 nodes" in log.read_text()
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["validation"]["loss"] == pytest.approx(wanted_loss, abs=1e-3)


@slow
def test_a_run_folder_on_a_disk_of_the_node_is_found_out(jobs: Jobs) -> None:
    local = jobs.cluster.folder / "local" / "run"
    job = jobs.submit(train_words(), "--nodes=2", *SMALL, RUN_DIR=local)
    job.wait(
        "refusal", lambda: "is not the one that the job's first node writes to" in job.output()
    )
    assert "on node 'n2'" in job.output()


@slow
def test_the_second_job_of_a_run_folder_is_refused(jobs: Jobs) -> None:
    first = jobs.submit(train_words(), "--nodes=1", *SMALL)
    first.wait_step(3)
    second = jobs.submit(train_words(), "--nodes=1", *SMALL, name="other", RUN_DIR=first.run_dir)
    assert second.wait_over() == "FAILED"
    assert second.exit_code == "2:0"
    assert f"is in use by job {first.job_id} (RUNNING)" in second.output()


@slow
def test_a_node_with_another_torch_stays_away(jobs: Jobs) -> None:
    """On n2 a Python that finds another torch's metadata first."""
    fake = jobs.folder / "fake" / "torch-9.9.9.dist-info"
    fake.mkdir(parents=True)
    (fake / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 9.9.9\n")
    text = f"""#!/bin/sh
[ "$(hostname)" = n2 ] && export PYTHONPATH={fake.parent}
exec {sys.executable} "$@"
"""
    python = _file(jobs.folder / "python", text)
    python.chmod(0o755)
    job = jobs.submit(train_words(), "--nodes=2", *SMALL, PYTHON=python)
    job.wait("refusal", lambda: "node 'n2' cannot take part" in job.output())
    assert "torch is 9.9.9 on n2" in job.output()


@slow
def test_a_wrong_option_fails_at_once(jobs: Jobs) -> None:
    job = jobs.submit(train_words(cut="secnod"), "--nodes=2", *SMALL)
    assert job.wait_over() == "FAILED", job.story()
    assert job.exit_code == "2:0"
    assert job.show().restarts == 0
