"""Faults in a job on a Slurm of this machine: our script, and torchrun with the best usual one.

The usual script has `--no-kill` twice, does not end with one agent, comes back when it is requeued,
and shares no store, so that restarts work at all. Its workers are ours: both restore alike.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cluster.slurm_cluster import Cluster, open_cluster, why_not
from benchmarks.cluster.slurm_jobs import SMALL, Jobs, Submitted, train_words
from benchmarks.results.record import Check, Options, print_table

CLAIM = "a lost node costs 5 s and no step; a lost first node is requeued within 15 s"
LIMIT_S = 120.0
"""How long a fault may keep a job from its next step; never, beyond."""
GPUS = (2, 2, 2, 2)
COLUMNS = ("seconds", "steps_lost", "requeued_s")
STOCK_NAME = "stock"
STOCK = """#!/usr/bin/env bash
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(scontrol -o show node "$first" | grep -o 'NodeAddr=[^ ]*' | cut -d= -f2)
export address
srun --no-kill --kill-on-bad-exit=0 --nodes="$SLURM_NNODES" --ntasks-per-node=1 --cpu-bind=none \\
    bash -c 'here=$(ip -4 -o route get "$address" | grep -o "src [0-9.]*" | cut -d" " -f2)
    host=false; [ "$here" = "$address" ] || [[ "$(ip -4 -o addr)" == *"$address/"* ]] && host=true
    [ $host = true ] && here=$address
    exec "$PYTHON" -m torch.distributed.run --nnodes="1:$SLURM_NNODES" --nproc-per-node=2 \\
        --rdzv-backend=c10d --rdzv-endpoint="$address:29400" --local-addr="$here" \\
        --rdzv-conf="is_host=$host" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \\
        --max-restarts=100 -m bundlerun.workers.train --run-dir="$RUN_DIR" "$@"' bash "$@"
"""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault; `do` is given the job when it runs."""

    name: str
    do: Callable[[Submitted], None]


def _other(job: Submitted) -> str:
    """A node of a job of three that is not its first."""
    return next(name for name in job.cluster.names[:3] if name != job.show().batch_node)


CASES = (
    Case("node crashes", lambda job: job.cluster.crash(_other(job))),
    Case("node powered off", lambda job: job.cluster.power_off(_other(job))),
    Case("first node powered off", lambda job: job.cluster.power_off(job.show().batch_node)),
)


def skip_reason() -> str:
    """Why there is no Slurm here; empty where there can be."""
    return why_not()


def run(options: Options) -> None:
    """Runs every fault under both scripts, as often as asked for."""
    found: list[dict[str, object]] = []
    with open_cluster(GPUS) as cluster:
        for number in range(options.rounds_or(3)):
            for case in CASES:
                for script in ("bundle.sbatch", STOCK_NAME):
                    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
                        recovery = measure(cluster, case, script, Path(folder))
                    # The next case begins with all nodes up, whatever this one has left.
                    cluster.repair()
                    found.append({"script": script, "round": number, **recovery})
                    print(f"{script:14} {recovery}", flush=True)
    print_table(
        ("script, fault", "s to the next step", "steps lost", "s to the requeue"),
        [(f"{row['script']}, {row['case']}", *map(row.get, COLUMNS)) for row in found],
    )
    checks = [
        Check("a node lost, seconds to the next step, at most", worst(found, "seconds", "node"), 5),
        Check(
            "the first lost, seconds to the requeue, at most",
            worst(found, "requeued_s", "first"),
            15,
        ),
    ]
    options.record("slurm", {"limit_s": LIMIT_S, "recoveries": found}, checks)


def worst(rows: Sequence[Mapping[str, object]], column: str, case: str) -> float:
    """The greatest number of a column under our script, infinite where there is none."""
    ours = [
        row for row in rows if row["script"] != STOCK_NAME and str(row["case"]).startswith(case)
    ]
    return max(
        # A run that never came back has no number, and must not improve the worst.
        value if isinstance(value, (int, float)) else math.inf
        for value in (row[column] for row in ours)
    )


def measure(cluster: Cluster, case: Case, script: str, folder: Path) -> dict[str, object]:
    """What a fault costs; `seconds` is None where the job did not get over it."""
    jobs = Jobs(cluster, folder)
    words = train_words(synthetic_samples=20_000)
    job = jobs.submit(words, "--nodes=3", *SMALL, **_script(script))
    job.wait_step(10)
    # Only now: the first steps need their own time to start up.
    job.limit_s = LIMIT_S
    # With its first node a job loses the batch script: only ours has somebody to requeue it.
    requeues = script != STOCK_NAME and case.name.startswith("first")
    try:
        with job.fault(case.name):
            case.do(job)
            if requeues:
                job.wait_requeued()
    except TimeoutError:
        nothing = dict.fromkeys(COLUMNS)
        return {"case": case.name, **nothing, "state": job.show().state}
    return asdict(job.recoveries[-1])


def _script(name: str) -> dict[str, str]:
    return {"script": STOCK} if name == STOCK_NAME else {}
