"""Memory that one more rank of a node costs, forked by bundlerun against started by torchrun.

Proportional set size (PSS): a page that n processes share counts 1/n for each, so the sum over all
processes of a job is what the job takes from the machine.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.models import resnet18

from benchmarks.cluster.jobs import STARTERS, Job, Starter, started
from benchmarks.results.record import Options, print_table

CLAIM = "one more rank on a node costs under 150 MiB beyond the model's own memory"
NUM_RANKS = (2, 4, 6)
NUM_ROUNDS = 3
WARM_STEP = 3
NUM_LOOKS = 5
LOOK_EVERY_S = 0.3
TIMEOUT_S = 180.0
IMAGE_SIZE = 64
MICROBATCH = 8
NUM_CLASSES = 10
NUM_COPIES = 3
"""Of each parameter: itself, gradient, momentum."""


def job(num_ranks: int) -> Job:
    """One node of whole models: every rank is alike, and more ranks mean more of the same."""
    return Job(
        num_nodes=1,
        num_ranks=num_ranks,
        options=(
            "--model=resnet18",
            "--shape=1",
            f"--image-size={IMAGE_SIZE}",
            "--augment=none",
            f"--batch-size={MICROBATCH * num_ranks}",
            f"--microbatch-size={MICROBATCH}",
            "--synthetic-samples=4096",
            "--no-validate",
            "synthetic",
        ),
    )


def run(options: Options) -> None:
    """Measures all sizes of both in turn."""
    own = own_mib()
    pss: dict[tuple[Starter, int], list[float]] = {
        (starter, n): [] for n in NUM_RANKS for starter in STARTERS
    }
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        for number in range(options.rounds_or(NUM_ROUNDS)):
            for (starter, n), found in pss.items():
                found.append(job_mib(job(n), starter, Path(folder) / f"{starter}-{n}-{number}"))
    medians = {key: median(found) for key, found in pss.items()}
    rows = []
    for starter in STARTERS:
        sums = [medians[starter, n] for n in NUM_RANKS]
        extra = slope(NUM_RANKS, sums)
        rows.append((starter, *sums, extra, extra - sum(own.values())))
    head = ("started by", *(f"{n} ranks" for n in NUM_RANKS), "per extra rank", "beyond the model")
    print_table(head, rows)
    parts = ", ".join(f"{name} {mib:.0f}" for name, mib in own.items())
    print(f"MiB; the model's own: {parts}")
    results = [dict(zip(("starter", *head[1:]), row, strict=True)) for row in rows]
    options.record("memory", {"unit": "MiB PSS", "model_own": own, "jobs": results})


def job_mib(job: Job, starter: Starter, run_dir: Path) -> float:
    """PSS of all processes of a job in mid-training, MiB, the highest of a few looks."""
    with started(job, starter, run_dir, {}) as running:
        running.wait_for_step(WARM_STEP, TIMEOUT_S)
        looks = []
        for _ in range(NUM_LOOKS):
            # PSS: a page that several processes share counts once in the sum.
            looks.append(sum(map(pss_mib, running.processes())))
            time.sleep(LOOK_EVERY_S)
    print(f"{starter}, {job.num_ranks} ranks: {max(looks):.0f} MiB", flush=True)
    return max(looks)


def pss_mib(process: psutil.Process) -> float:
    """PSS of one process, MiB."""
    return float(process.memory_full_info().pss) / 2**20


def own_mib() -> dict[str, float]:
    """What the model itself needs on one rank, MiB: weights and all, and what autograd keeps.

    The second is counted once per storage over the forward of one micro-batch; gradients of
    activations come and go in its place during the backward.
    """
    model = resnet18(num_classes=NUM_CLASSES)
    weights = sum(map(num_bytes, model.parameters()))
    buffers = sum(map(num_bytes, model.buffers()))
    inputs = torch.zeros((MICROBATCH, 3, IMAGE_SIZE, IMAGE_SIZE))
    return {
        "parameters, gradients, momentum": (NUM_COPIES * weights + buffers) / 2**20,
        "activations": kept_bytes(model, inputs) / 2**20,
    }


def kept_bytes(model: nn.Module, inputs: Tensor) -> int:
    """Bytes that autograd keeps for the backward, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # By storage: several saved tensors may be views of one.
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(inputs)  # as long as it lives, no address is used twice
    del output
    return sum(kept.values())


def num_bytes(tensor: Tensor) -> int:
    """Size of a tensor."""
    return tensor.numel() * tensor.element_size()


def slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Slope of the least-squares line through the points."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    above = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return above / sum((x - mean_x) ** 2 for x in xs)
