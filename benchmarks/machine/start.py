"""From the command to the end of the first step, `bundlerun run` against stock torchrun."""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median

from benchmarks.cluster.jobs import STARTERS, Job, Starter, started
from benchmarks.results.record import Options, print_table

CLAIM = "two nodes of four ranks reach their first step in half the time of torchrun or less"
NUM_ROUNDS = 5
TIMEOUT_S = 180.0
JOB = Job(
    num_nodes=2,
    num_ranks=4,
    options=(
        "--model=resnet18",
        "--shape=1,1",
        "--image-size=32",
        "--augment=none",
        "--batch-size=32",
        "--microbatch-size=8",
        "--synthetic-samples=32",
        "--epochs=1",
        "--max-steps=1",
        "--no-validate",
        "synthetic",
    ),
)


def run(options: Options) -> None:
    """Measures both in turn; which comes first alternates."""
    times: dict[Starter, list[float]] = {starter: [] for starter in STARTERS}
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        for number in range(options.rounds_or(NUM_ROUNDS)):
            for starter in STARTERS if number % 2 else reversed(STARTERS):
                run_dir = Path(folder) / f"{starter}-{number}"
                times[starter].append(first_step_s(starter, run_dir))
            print("  ".join(f"{s} {t[-1]:.1f} s" for s, t in times.items()), flush=True)
    ratio = median(a / b for a, b in zip(*times.values(), strict=True))
    print_table(
        ("started by", "median s", "fastest s", "slowest s"),
        [(s, median(t), min(t), max(t)) for s, t in times.items()],
    )
    print(f"ratio of a pair, median: {ratio:.2f}")
    options.record("start", {"job": list(JOB.options), "seconds": times, "ratio": ratio})


def first_step_s(starter: Starter, run_dir: Path) -> float:
    """Seconds from starting the first agent to the end of step 0."""
    with started(JOB, starter, run_dir, {}) as job:
        end = job.wait_for_step(0, TIMEOUT_S)
        # To the orderly end, so that the next start has the machine for itself.
        job.wait(TIMEOUT_S)
        return end - job.started
