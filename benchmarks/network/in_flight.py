"""Peak memory of the first of four stages in a step: ours against torch's Schedule1F1B.

    stage 0   F0 F1 F2 F3 B0 F4 B1 ...      four micro-batches are in flight

Both have the same stages, micro-batches and network, in the same processes. Memory is the bytes of
tensors that are alive (`benchmarks.workload.alive`): what autograd keeps, what goes over the links,
what is received into. Parameters, their gradients and the data count for neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torchvision.models import VisionTransformer, resnet50

from benchmarks.cluster.forked import TIMEOUT_S, Seat, run_ranks
from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.alive import Alive
from benchmarks.workload.ours import Pipe
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.splits.models import make_stages
from bundlerun.workers.data.samples import Batch

CLAIM = "stage 0 of four needs at most 0.9 of the memory that it needs with torch's 1F1B"
TARGET = 0.9
NUM_STAGES: Final = 4
MICROBATCH = 8
NUM_MICROBATCHES = 16
"""What the launcher chooses at least: four per stage."""
IMAGE_SIZE = 64
NUM_ROUNDS = 1
"""Bytes are counted, not timed: only messages that happen to be on the way differ."""
_MBIT_PER_S = 10_000
_MIB = 2**20


def _vit(num_layers: int) -> nn.Module:
    made: nn.Module = VisionTransformer(
        image_size=IMAGE_SIZE,
        patch_size=8,
        num_layers=num_layers,
        num_heads=4,
        hidden_dim=128,
        mlp_dim=512,
        num_classes=10,
    )
    return made


MODELS: Mapping[str, Callable[[], nn.Module]] = {
    "ResNet-50": partial(resnet50, num_classes=10),
    "ViT of 4 layers": partial(_vit, 4),
    "ViT of 12 layers": partial(_vit, 12),
}

skip_reason = why_not


def run(options: Options) -> None:
    """Measures all models, ours and torch's in turn."""
    rows, results, checks = [], [], []
    for name, build in MODELS.items():
        if not options.wants(name):
            continue
        with open_hosts(NUM_STAGES, Wire(mbit_per_s=_MBIT_PER_S)) as hosts:
            rounds = options.rounds_or(NUM_ROUNDS)
            answers = run_ranks(hosts, (1,) * NUM_STAGES, partial(_rank, build, rounds))
        for stage, found in enumerate(answers):
            ours, again, theirs = (median(peaks) / _MIB for peaks in found.values())
            rows.append((f"{name}, stage {stage}", ours, again, theirs, ours / theirs))
            results.append({"model": name, "stage": stage, **found})
            if stage == 0:
                checks.append(Check(f"{name}: stage 0, at most", ours / theirs, TARGET))
    print_table(("peak, MiB", "bundlerun", "recomputing", "torch", "bundlerun / torch"), rows)
    settings = {"microbatch": MICROBATCH, "num_microbatches": NUM_MICROBATCHES}
    options.record("in_flight", {"unit": "bytes", **settings, "results": results}, checks)


def _rank(build: Callable[[], nn.Module], rounds: int, seat: Seat) -> dict[str, list[int]]:
    seat.join_torch()
    torch.manual_seed(1)
    stages = make_stages(build(), cut=(str(NUM_STAGES),), num_stages=NUM_STAGES)
    stage = stages[seat.env.rank].train()
    images = torch.randn(NUM_MICROBATCHES * MICROBATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = torch.randint(10, (len(images),))
    steps = {
        "ours": _ours(seat, stage, images, labels),
        "recomputing": _ours(seat, stage, images, labels, recomputes=True),
        "torch": _of_torch(seat, stage, images, labels),
    }
    counts = {name: Alive() for name in steps}
    peaks: dict[str, list[int]] = {name: [] for name in steps}
    # In the first step what stays is made: gradients, and what torch receives into.
    for number in range(1 + rounds):
        for name, step in steps.items():
            seat.barrier.wait(TIMEOUT_S)
            with counts[name]:
                step()
            if number:
                peaks[name].append(counts[name].peak_bytes)
            gradients = [p.grad for p in stage.parameters() if p.grad is not None]
            counts[name].leave_out(
                [images, labels, *stage.parameters(), *stage.buffers(), *gradients]
            )
    return peaks


def _ours(
    seat: Seat, stage: nn.Module, images: Tensor, labels: Tensor, *, recomputes: bool = False
) -> Callable[[], None]:
    topology = Topology(Shape((1,) * NUM_STAGES), (1,) * NUM_STAGES)
    pipe = Pipe(seat, topology, [stage], "1f1b", recomputes=recomputes)
    pairs = zip(images.split(MICROBATCH), labels.split(MICROBATCH), strict=True)
    batches = [Batch((x,), y, 0) for x, y in pairs]
    return lambda: pipe.step_on(batches)


class _OneOrMore(nn.Module):
    """A stage as torch's pipeline takes it: it gives a tensor, if it is but one, in order.

    torch receives into memory of the same strides, which gloo refuses unless it is contiguous.
    """

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, *inputs: Tensor) -> object:
        result = self.stage(*inputs)
        found = (result,) if isinstance(result, Tensor) else result
        sent = tuple(tensor.contiguous() for tensor in found)
        return sent[0] if len(sent) == 1 else sent


def _of_torch(seat: Seat, stage: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    rank = seat.env.rank
    made = PipelineStage(_OneOrMore(stage), rank, NUM_STAGES, torch.device("cpu"))
    schedule = Schedule1F1B(made, NUM_MICROBATCHES, loss_fn=lambda output, _: output.mean())
    inputs = (images,) if rank == 0 else ()
    target = labels if rank == NUM_STAGES - 1 else None
    return lambda: schedule.step(*inputs, target=target)
