"""The launchers that people have, ours and others': each starts two ranks, or is told what to do.

Launchers are looked for next to this Python and on the PATH; `make test-launchers` says which are
not there. The four that need nothing run in each test.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths

ROOT = Path(__file__).parents[2]
LIMIT_S = 200
PYTHON = sys.executable
PATH = f"{Path(PYTHON).parent}{os.pathsep}{os.environ['PATH']}"
MODEL = f"{ROOT / 'tests/ranks/tiny_model.py'}:build"
OPTIONS = (
    "--shape=1", f"--model={MODEL}", "--image-size=8", "--batch-size=8", "--microbatch-size=4",
    "--synthetic-samples=32", "--epochs=1", "--no-affinity",
)  # fmt: skip
FOREIGN = ("OMPI_", "PMI_", "PMIX_", "SLURM_", "PET_", "MASTER_", "BUNDLERUN_")
MPI = (
    "mpirun", "--allow-run-as-root", "--oversubscribe", "-x", "PATH", "-x", "PYTHONPATH", "-x",
    "OMP_NUM_THREADS",
)  # fmt: skip
MPICH = ("mpiexec.hydra", "-n", "2")
WORKER = (PYTHON, "-m", "bundlerun.workers.train")
RUN = ("bundlerun", "run", "--devices=cpu")


def launched(
    words: Sequence[str],
    folder: Path,
    more: Mapping[str, str] | None = None,
    options: Sequence[str] = (*OPTIONS, "synthetic"),
) -> subprocess.CompletedProcess[str]:
    """Runs a launcher in `folder`, with a run folder in it."""
    program = shutil.which(words[0], path=PATH)
    if program is None:
        pytest.skip(f"{words[0]} is not installed")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(FOREIGN)}
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environ |= {"PATH": PATH, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **(more or {})}
    done = subprocess.run(
        [program, *words[1:], f"--run-dir={folder / 'run'}", *options],
        capture_output=True, text=True, timeout=LIMIT_S, check=False, env=environ, cwd=folder,
    )  # fmt: skip
    print(done.stdout, done.stderr, sep="\n")
    return done


def check_trained(folder: Path, num_bundles: int) -> None:
    """One run, of so many ranks, has come to its end."""
    paths = RunPaths(folder / "run")
    outcome = read_outcome(paths)
    assert outcome is not None
    assert (outcome.state, outcome.step) == ("done", 4)
    rows = [json.loads(line) for line in paths.metrics.read_text().splitlines()]
    starts = [row for row in rows if "bundles" in row]
    assert [row["bundles"] for row in starts] == [num_bundles]
    assert [row["step"] for row in rows if row.get("loss") and row.get("lr")] == [0, 1, 2, 3]
    assert [path.suffix for path in paths.claims.iterdir()] == [".over"]


def check_ready(words: str) -> None:
    """Skips dlrover without its master and srun without its Slurm; others need only themselves."""
    if words.startswith("srun") and (
        shutil.which("sinfo") is None or subprocess.run(["sinfo"], timeout=30).returncode
    ):
        pytest.skip("here is no Slurm")
    if words.startswith("dlrover") and "DLROVER_MASTER_ADDR" not in os.environ:
        pytest.skip("DLROVER_MASTER_ADDR is not set: its own master does not start with torch 2.14")


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


# ---------------------------------------------------------------- what needs no other program


def test_bundlerun_starts_two_ranks(tmp_path: Path) -> None:
    assert launched([*RUN, "--slots=2"], tmp_path).returncode == 0
    check_trained(tmp_path, 2)


def test_torchrun_starts_two_ranks(tmp_path: Path) -> None:
    words = ["torchrun", "--standalone", "--nproc-per-node=2", "-m", "bundlerun.workers.train"]
    assert launched(words, tmp_path).returncode == 0
    check_trained(tmp_path, 2)


def test_bundlerun_takes_torchruns_variables_as_kubeflow_sets_them(tmp_path: Path) -> None:
    pet = {"PET_NNODES": "1", "PET_NPROC_PER_NODE": "2", "PET_RDZV_ID": "a-job"}
    assert launched([*RUN, "--slots=2"], tmp_path, pet).returncode == 0
    check_trained(tmp_path, 2)


def test_python_alone_is_one_rank(tmp_path: Path) -> None:
    assert launched(WORKER, tmp_path).returncode == 0
    check_trained(tmp_path, 1)


# ---------------------------------------------------------------- MPI and Slurm


@pytest.mark.slow
def test_mpirun_on_one_node_trains(tmp_path: Path) -> None:
    assert launched([*MPI, "-np", "2", *WORKER], tmp_path).returncode == 0
    check_trained(tmp_path, 2)


@pytest.mark.slow
def test_mpirun_of_ranks_that_know_of_nobody_is_refused(tmp_path: Path) -> None:
    unset = ("env", "-u", "PMIX_NAMESPACE")  # as of several nodes, where no port is known
    done = launched([*MPI, "-np", "2", *unset, *WORKER], tmp_path)
    assert done.returncode == 2
    assert "of 2 that Open MPI started, and nothing tells them where to meet" in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_mpirun_of_ranks_that_are_told_where_to_meet_trains(tmp_path: Path) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [*MPI, "-x", "MASTER_ADDR", "-x", "MASTER_PORT", "-np", "2", *WORKER]
    assert launched(words, tmp_path, meeting).returncode == 0
    check_trained(tmp_path, 2)


@pytest.mark.slow
def test_mpich_that_is_told_where_to_meet_trains(tmp_path: Path) -> None:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    assert launched([*MPICH, *WORKER], tmp_path, meeting).returncode == 0
    check_trained(tmp_path, 2)


@pytest.mark.slow
def test_mpirun_of_bundlerun_is_one_per_node(tmp_path: Path) -> None:
    done = launched([*MPI, "-np", "2", *RUN, "--slots=2"], tmp_path)
    assert done.returncode == 2
    assert "use mpirun --map-by ppr:1:node bundlerun run" in done.stderr
    assert launched([*MPI, "-np", "1", *RUN, "--slots=2"], tmp_path).returncode == 0
    check_trained(tmp_path, 2)


@pytest.mark.slow
def test_srun_alone_trains(tmp_path: Path) -> None:
    check_ready("srun")
    assert launched(["srun", "-N1", "-n2", *WORKER], tmp_path).returncode == 0
    check_trained(tmp_path, 2)


# ---------------------------------------------------------------- others that start ranks


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "accelerate launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
        "--dynamo_backend=no --module bundlerun.workers.train",
        "ft_launcher --standalone --nproc-per-node=2 -m bundlerun.workers.train",
        "dlrover-run --standalone --nproc_per_node=2 -m bundlerun.workers.train",
        "deepspeed --num_accelerators=2 --module bundlerun.workers.train",
        "torchx run --scheduler=local_cwd dist.ddp -j 1x2 -m bundlerun.workers.train --",
    ],
    ids=lambda words: words.split()[0],
)
def test_a_launcher_of_others_starts_two_ranks(words: str, tmp_path: Path) -> None:
    check_ready(words)
    done = launched(words.split(), tmp_path, {"MASTER_PORT": free_port()})
    assert done.returncode == 0
    check_trained(tmp_path, 2)


SCRIPT = "import sys\nfrom bundlerun.workers.train import main\nsys.exit(main())\n"


@pytest.mark.slow
def test_fabric_starts_two_ranks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = ["fabric", "run", "--accelerator=cpu", "--devices=2", str(script)]
    assert launched(words, tmp_path).returncode == 0
    check_trained(tmp_path, 2)


RAY = """
import sys
from ray.train import ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
def work(config):
    from bundlerun.workers.train import main
    assert main(config["argv"]) == 0
TorchTrainer(
    work, train_loop_config={"argv": sys.argv[1:]}, torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=2),
).fit()
"""


@pytest.mark.slow
def test_rays_workers_are_two_ranks(tmp_path: Path) -> None:
    pytest.importorskip("ray.train.torch", reason="ray is not installed")
    script = tmp_path / "script.py"
    script.write_text(RAY)
    assert launched([PYTHON, str(script)], tmp_path).returncode == 0
    check_trained(tmp_path, 2)


# ---------------------------------------------------------------- the doors of the library


def check_both_doors(folder: Path) -> None:
    """Two ranks were one job in `protect`, and the two stages of one bundle after it."""
    parts = {path.name: path.read_text() for path in (folder / "run").glob("rank-*")}
    assert parts == {"rank-0.weight 0.bias": "2 True", "rank-2.weight 2.bias": "2 True"}


OWN_RAY = RAY.replace("bundlerun.workers.train", "tests.launchers.own_loop")
OWN_RAY = OWN_RAY.replace('assert main(config["argv"]) == 0', 'main(config["argv"])')
SPAWN = """
import os, sys
import torch.distributed as dist
import torch.multiprocessing as mp
from tests.launchers.own_loop import main
def work(rank, argv):
    where = "tcp://127.0.0.1:" + os.environ["PORT"]
    dist.init_process_group("gloo", where, rank=rank, world_size=2)
    main(argv)
if __name__ == "__main__":
    mp.spawn(work, args=(sys.argv[1:],), nprocs=2)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        "torchrun --standalone --nproc-per-node=2",
        "bundlerun script --devices=cpu --nproc-per-node=2",
        "accelerate launch --multi_gpu --num_processes=2 --num_machines=1 --mixed_precision=no "
        "--dynamo_backend=no",
        "ft_launcher --standalone --nproc-per-node=2",
        "dlrover-run --standalone --nproc_per_node=2",
        "deepspeed --num_accelerators=2",
        "torchx run --scheduler=local_cwd dist.ddp -j 1x2 --script PROGRAM --",
        "fabric run --accelerator=cpu --devices=2",
        f"{' '.join(MPI)} -np 2 {PYTHON}",
        f"{' '.join(MPICH)} {PYTHON}",
        f"srun -N1 -n2 {PYTHON}",
    ],
    ids=lambda words: words.split()[0],
)
def test_a_loop_of_ones_own_has_two_ranks(words: str, tmp_path: Path) -> None:
    check_ready(words)
    program = str(Path(__file__).with_name("own_loop.py"))
    split = [program if word == "PROGRAM" else word for word in words.split()]
    split = split if program in split else [*split, program]
    if split[0] == "bundlerun":  # its own options are before the program
        split.insert(2, f"--run-dir={tmp_path / 'run'}")
    meeting = {"MASTER_PORT": free_port()}
    if words.startswith(MPICH[0]):
        meeting["MASTER_ADDR"] = "127.0.0.1"
    done = launched(split, tmp_path, meeting, ())
    assert done.returncode == 0
    check_both_doors(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("text", [SPAWN, OWN_RAY], ids=["mp.spawn", "ray"])
def test_a_loop_of_ones_own_has_two_ranks_where_a_program_makes_them(
    text: str, tmp_path: Path
) -> None:
    if text is OWN_RAY:
        pytest.importorskip("ray.train.torch", reason="ray is not installed")
    script = tmp_path / "script.py"
    script.write_text(text)
    assert launched([PYTHON, str(script)], tmp_path, {"PORT": free_port()}, ()).returncode == 0
    check_both_doors(tmp_path)


@pytest.mark.slow
def test_a_loop_whose_launcher_gave_no_rank_is_one_line(tmp_path: Path) -> None:
    program = str(Path(__file__).with_name("own_loop.py"))
    done = launched([PYTHON, program], tmp_path, {"WORLD_SIZE": "2"}, ())
    assert done.returncode == 2
    assert done.stderr.startswith("error: WORLD_SIZE=2 says that this is one of several processes")
    assert done.stderr.count("\n") == 1
