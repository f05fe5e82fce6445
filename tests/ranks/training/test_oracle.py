"""torch's own pipeline schedules, on the same parts of a model, give the same gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.splits.models import make_stages
from bundlerun.splits.stage import Forward, chunk_forwards
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.pipeline.wires import Wires
from bundlerun.workers.rank.comm import Network
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.groups import make_links
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.step import StepShare, StepWork
from tests.ranks.harness import run_ranks
from tests.ranks.tiny_model import Tiny
from tests.ranks.training.test_parity import CONFIG

# A power of two: we weigh each loss, torch divides the sum of gradients, and both are exact.
NUM_MICROBATCHES, SIZE = 8, 4
SHAPE = (NUM_MICROBATCHES * SIZE, 3, 8, 8)
CUTS = {1: ("second",), 2: ("norm1", "second", "third")}


class Case(NamedTuple):
    """A schedule of ours and one of torch's over as many chunks."""

    ours: str
    theirs: type
    chunks: int


CASES = [
    Case("1f1b", Schedule1F1B, 1),
    Case("eager-1f1b", Schedule1F1B, 1),
    Case("gpipe", ScheduleGPipe, 1),
    Case("zero-bubble", ScheduleInterleavedZeroBubble, 1),
    Case("interleaved", ScheduleInterleaved1F1B, 2),
    Case("interleaved", ScheduleInterleavedZeroBubble, 2),
]


def parts(num_stages: int, chunks: int) -> list[nn.Module]:
    """The model in stages, batch norms with fixed statistics: torch's pipeline would move them."""
    torch.manual_seed(1)
    model = Tiny(10)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    cut = CUTS[num_stages * chunks // 2]
    return make_stages(model, cut=cut, num_stages=num_stages, chunks_per_stage=chunks)


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(SHAPE, generator=generator)
    return x, torch.randint(10, SHAPE[:1], generator=generator)


def gradients_of(*modules: nn.Module) -> dict[str, Tensor]:
    named = [item for module in modules for item in module.named_parameters()]
    return {name: p.grad for name, p in named if p.grad is not None}


def make_bundle(
    env: RankEnv,
    store: Store,
    topology: Topology,
    stage: nn.Module,
    schedule: str,
    forwards: Sequence[Forward] = (),
) -> Bundle:
    """This rank's part of a bundle around a stage of one's own."""
    network = Network(
        store=dist.PrefixStore("ours", store),
        rank=env.rank,
        backend="gloo",
        timeout_s=30,
        address="127.0.0.1",
    )
    place = topology.places[env.rank]
    links = make_links(topology, place, network)
    pipeline, device = Pipeline.of(topology, schedule), torch.device("cpu")
    return Bundle(
        wires=Wires(topology, place, links, pipeline, device),
        pipeline=pipeline,
        stage=stage,
        forwards=forwards or chunk_forwards(stage, topology.chunks_per_stage),
        recipe=load_recipe(replace(CONFIG, precision="float32")),
        arithmetic=Arithmetic(device, "float32"),
        meters=Meters(),
    )


def ours(case: Case, env: RankEnv, store: Store) -> tuple[dict[str, Tensor], Tensor | None]:
    stage = parts(2, case.chunks)[env.rank]
    bundle = make_bundle(env, store, Topology(Shape((1, 1)), (2,), case.chunks), stage, case.ours)
    x, y = batch()
    batches = iter([Batch((a,), b, 0) for a, b in zip(x.split(SIZE), y.split(SIZE), strict=True)])
    work = StepWork(seed=0, step=0, first=0, sizes=[SIZE] * NUM_MICROBATCHES, num_samples=SHAPE[0])
    share = StepShare()
    bundle.train(work, batches, share)
    return gradients_of(stage), share.loss


def of_torch(case: Case, env: RankEnv, store: Store) -> tuple[dict[str, Tensor], list[Tensor]]:
    dist.init_process_group(
        "gloo", store=dist.PrefixStore("torch", store), rank=env.rank, world_size=2
    )
    num_parts = 2 * case.chunks
    mine = range(env.rank, num_parts, 2)
    built = parts(num_parts, 1)
    stages = [
        PipelineStage(
            _Tuple(built[number]),
            number,
            num_parts,
            torch.device("cpu"),
            input_args=crossing[0],
            output_args=crossing[1],
        )
        for number, crossing in enumerate(meta_tensors(num_parts))
        if number in mine
    ]
    is_multi = case.theirs not in (Schedule1F1B, ScheduleGPipe)
    schedule = case.theirs(
        stages if is_multi else stages[0],
        NUM_MICROBATCHES,
        loss_fn=lambda output, y: torch.nn.functional.cross_entropy(output[0], y),
    )
    x, y = batch()
    losses: list[Tensor] = []
    given = (x,) if env.rank == 0 else ()
    schedule.step(*given, target=y if env.rank == 1 else None, losses=losses)
    dist.destroy_process_group()
    return gradients_of(*(built[number] for number in mine)), losses


def meta_tensors(num_parts: int) -> list[tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """What goes into each part and what comes out, without data."""
    tensors: tuple[Tensor, ...] = (torch.empty(SIZE, *SHAPE[1:], device="meta"),)
    found = []
    for part in parts(num_parts, 1):
        outputs = _Tuple(part.to("meta"))(*tensors)
        found.append((tensors, outputs))
        tensors = tuple(t.detach().requires_grad_() for t in outputs)
    return found


class _Tuple(nn.Module):
    """Makes a tuple of the last part's output, too; of copies, as torch detaches them in place.

    A part that hands on what it has received still needs it for the gradients of its weights.
    """

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        result = self.part(*inputs)
        outputs = (result,) if isinstance(result, Tensor) else result
        return tuple(output.clone() for output in outputs)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.ours} and {c.theirs.__name__}")
def test_one_step_agrees_with_torchs_pipeline(case: Case, tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        mine, loss = ours(case, env, store)
        theirs, losses = of_torch(case, env, store)
        assert mine.keys() == theirs.keys()
        for name, gradient in theirs.items():
            assert torch.equal(mine[name], gradient), name
        if loss is not None:
            torch.testing.assert_close(loss.float(), torch.stack(losses).mean())

    run_ranks((2,), main, tmp_path)
