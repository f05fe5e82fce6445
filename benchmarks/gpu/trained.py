"""Two ways to train the same model on the same batches: a plain loop, and the trainer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torchvision.models import resnet50

from benchmarks.gpu.bench import Bench
from benchmarks.machine.loop import alone
from benchmarks.workload.small_cnn import SmallCnn
from bundlerun.launcher.choices import Precision
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.device import accelerator
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.step import StepResult, StepWork
from bundlerun.workers.trainer import Trainer

LR = 0.001
MOMENTUM = 0.9
_STEPS_PER_EPOCH = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is trained.

    Args:
        build: makes the model.
        num_classes: of it.
        image_size: pixels of a side.
        num_microbatches: of a step.
        microbatch: samples of each.
        precision: float32 or bfloat16.
        channels_last: whether images and weights lie so.
        options: more of the trainer's, by field.
    """

    build: Callable[[], nn.Module]
    num_classes: int = 1000
    image_size: int = 224
    num_microbatches: int = 1
    microbatch: int = 256
    precision: Precision = "float32"
    channels_last: bool = False
    options: tuple[tuple[str, Any], ...] = ()

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.num_microbatches * self.microbatch

    @property
    def memory_format(self) -> torch.memory_format:
        """How images and weights lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def batches(self, device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """The micro-batches of one step, on the device; the same each time."""
        generator = torch.Generator().manual_seed(0)
        size = (self.microbatch, 3, self.image_size, self.image_size)
        one = torch.randn(size, generator=generator).to(device)
        targets = torch.randint(self.num_classes, (self.batch,), generator=generator).to(device)
        # Rolled, so that they differ and need not be drawn anew: that takes long for large ones.
        return [
            (one.roll(j, 0).contiguous(memory_format=self.memory_format), part)
            for j, part in enumerate(targets.split(self.microbatch))
        ]

    def model(self) -> nn.Module:
        """The model, the same each time, in CPU memory."""
        torch.manual_seed(0)
        return self.build()


def load_of(bench: Bench, **changes: Any) -> Load:  # noqa: ANN401
    """ResNet-50 at 224 pixels, or a small model in its place."""
    if bench.is_gpu:
        return Load(**({"build": resnet50} | changes))
    few = {
        "microbatch": 2,
        "num_microbatches": min(2, changes.get("num_microbatches", 1)),
    }
    small = {"build": partial(SmallCnn, 10), "num_classes": 10, "image_size": 16}
    return Load(**(changes | few | small))


class PlainLoop:
    """What a tutorial would write, with every switch that makes it fast."""

    def __init__(self, load: Load, device: torch.device) -> None:
        self._load = load
        self._device = device
        self._batches = load.batches(device)
        model = load.model().to(memory_format=load.memory_format)
        self.model = model.to(device).train()
        # None, not False: that would be one operation for each parameter.
        is_fused = True if device.type == "cuda" else None
        self._optimizer = SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM, fused=is_fused)
        self.loss = torch.zeros((), device=device)

    def step(self) -> None:
        """One step; nobody reads its loss."""
        is_low = self._load.precision == "bfloat16"
        self._optimizer.zero_grad()
        self.loss = torch.zeros((), device=self._device)
        for images, targets in self._batches:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=is_low):
                loss = cross_entropy(self.model(images), targets) / len(self._batches)
            loss.backward()
            self.loss += loss.detach()
        self._optimizer.step()


class Ours:
    """The trainer, alone in its job.

    Args:
        load: what is trained.
        is_loop: whether each step is told which comes next, as in a run, so that a GPU has the
            first forward of that one before the numbers of this one are read.
    """

    def __init__(self, load: Load, *, is_loop: bool = False) -> None:
        self._load = load
        config = TrainConfig(
            data="synthetic",
            num_classes=load.num_classes,
            image_size=load.image_size,
            shape=Shape((1,)),
            batch_size=load.batch,
            microbatch_size=load.microbatch,
            lr_schedule="constant",
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=0.0,
            precision=load.precision,
            memory_format="channels_last" if load.channels_last else "contiguous",
            **dict(load.options),
        )
        self.session = session = alone(config)
        model = load.model()
        self.meters = Meters.of(session.device)
        self.trainer = Trainer(config, session, model, load_recipe(config), self.meters)
        self._batches = [
            Batch((images,), targets, 0) for images, targets in load.batches(session.device)
        ]
        self._all_batches = cycle(self._batches) if is_loop else None
        self.count = 0

    def shorten(self, size: int) -> None:
        """Makes the last micro-batch so short, as that of an epoch may be."""
        (images,), targets, _ = self._batches[-1]
        self._batches[-1] = Batch((images[:size],), targets[:size], 0)

    def step(self, *, is_last: bool = False) -> StepResult:
        """One step; its result.

        Args:
            is_last: whether none is told to come next, so that nothing of it is begun.
        """
        work = self._work()
        self.count += 1
        following = None if is_last or self._all_batches is None else self._work()
        batches = self._all_batches or iter(self._batches)
        return self.trainer.step(work, batches, _STEPS_PER_EPOCH, following=following)

    def _work(self) -> StepWork:
        sizes = [len(batch.target) for batch in self._batches]
        return StepWork(seed=0, step=self.count, first=0, sizes=sizes, num_samples=sum(sizes))

    def close(self) -> None:
        """Ends the trainer."""
        self.trainer.close()


def peak_bytes(device: torch.device, act: Callable[[], object]) -> int:
    """Most bytes that torch has in use on a GPU during `act`; 0 where nobody counts."""
    if device.type != "cuda":
        act()
        return 0
    accelerator.drain(device)
    torch.cuda.reset_peak_memory_stats(device)
    act()
    accelerator.drain(device)
    return torch.cuda.max_memory_allocated(device)


def held_bytes(device: torch.device) -> int:
    """Bytes that torch has in use on a GPU now; 0 where nobody counts."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
