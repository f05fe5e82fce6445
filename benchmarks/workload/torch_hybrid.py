"""Pipelines of two stages, replicated, with torch's own parts: Schedule1F1B and DDP."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torchvision.models import resnet50

from benchmarks.cluster.forked import Seat
from bundlerun.splits.models import make_stages

NUM_STAGES = 2


class _OneTensor(nn.Module):
    """Torch's pipeline wants a tensor where a cut of one tensor gives a tuple of one."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> Tensor:
        result = self.stage(x)
        return result if isinstance(result, Tensor) else result[0]


class TorchHybrid:
    """One rank of a pipeline of two neighbouring ranks; collective.

    Args:
        images: of a step, over all pipelines.
        targets: their classes.
        seat: this rank.
        microbatch: samples of one.
        lr: learning rate.
    """

    def __init__(
        self, images: Tensor, targets: Tensor, seat: Seat, *, microbatch: int, lr: float
    ) -> None:
        rank, num_ranks = seat.env.rank, seat.env.world_size
        pipeline, stage = divmod(rank, NUM_STAGES)
        num_pipelines = num_ranks // NUM_STAGES
        # Every rank makes every group, in one order.
        across = [dist.new_group(range(s, num_ranks, NUM_STAGES)) for s in range(NUM_STAGES)]
        along: list[Any] = [
            dist.new_group([p * NUM_STAGES + s for s in range(NUM_STAGES)])
            for p in range(num_pipelines)
        ]
        torch.manual_seed(0)
        stages = make_stages(
            resnet50(num_classes=1000), cut=(), num_stages=NUM_STAGES, model_name="resnet50"
        )
        module = _OneTensor(stages[stage])
        # Given to torch, which would otherwise run a forward to infer them.
        shapes = _shapes([_OneTensor(s) for s in stages], images[:microbatch])
        self._optimizer = SGD(module.parameters(), lr=lr)
        wrapped = DistributedDataParallel(module, process_group=across[stage])
        pipe = PipelineStage(
            wrapped,
            stage,
            NUM_STAGES,
            torch.device("cpu"),
            input_args=(shapes[stage],),
            output_args=(shapes[stage + 1],),
            group=along[pipeline],
        )
        mine = images.chunk(num_pipelines)[pipeline]
        # Only the first stage takes samples, only the last compares with targets.
        self._images = (mine,) if stage == 0 else ()
        self._targets = targets.chunk(num_pipelines)[pipeline] if stage else None
        self._schedule = Schedule1F1B(pipe, len(mine) // microbatch, loss_fn=cross_entropy)

    def step(self) -> None:
        """One step, optimizer included."""
        self._optimizer.zero_grad()
        self._schedule.step(*self._images, target=self._targets)
        self._optimizer.step()


def _shapes(stages: list[_OneTensor], x: Tensor) -> list[Tensor]:
    """What goes into each stage and comes out of the last, without data."""
    found = [x.to("meta")]
    for stage in stages:
        with torch.no_grad():
            x = stage(x)
        found.append(x.to("meta").requires_grad_())
    return found
