"""One process, one stage: a step of the trainer against a step of a plain PyTorch loop."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torchvision.models import resnet18

from benchmarks.results.record import Check, Options, print_table
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.rank.arrival.open_store import open_store
from bundlerun.workers.rank.arrival.session import Session, arrive, join
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.step import StepWork
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.trainer import Trainer

CLAIM = "unsplit in one process, a step costs little more than in a plain loop"
BATCH = 64
MICROBATCH = 16
NUM_CLASSES = 10
NUM_WARM_UP = 3
LR = 0.001
MOMENTUM = 0.9
STEPS_PER_EPOCH = 1000

Microbatches = Sequence[tuple[Tensor, Tensor]]
Step = Callable[[], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, the images it takes, how many pairs of steps are timed, and the target."""

    name: str
    build: Callable[[], nn.Module]
    image_size: int
    num_pairs: int
    most_percent: float
    """That a step of the trainer may be slower."""


def small_norm() -> nn.Module:
    """A model with one batch norm in which the fixed costs of a micro-batch show."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, NUM_CLASSES),
    )


def small_plain() -> nn.Module:
    """A model without batch norm in which the fixed costs of a micro-batch show."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, NUM_CLASSES))


CASES = (
    Case(
        name="resnet18, 64x64",
        build=lambda: resnet18(num_classes=NUM_CLASSES),
        image_size=64,
        num_pairs=40,
        most_percent=0.5,
    ),
    Case(
        name="one batch norm, 8x8",
        build=small_norm,
        image_size=8,
        num_pairs=400,
        most_percent=50.0,
    ),
    Case(name="one linear, 8x8", build=small_plain, image_size=8, num_pairs=400, most_percent=80.0),
)


def run(options: Options) -> None:
    """Measures all cases."""
    torch.set_num_threads(1)
    rows, results, checks = [], [], []
    for case in filter(lambda case: options.wants(case.name), CASES):
        plain, ours, ratio = measure(case, options.rounds_or(case.num_pairs))
        extra_ms = (ours - plain) / (BATCH // MICROBATCH)
        rows.append((case.name, plain, ours, f"{100 * (ratio - 1):+.1f} %", extra_ms))
        checks.append(
            Check(f"{case.name}: percent slower, at most", 100 * (ratio - 1), case.most_percent)
        )
        results.append(
            {
                "case": case.name,
                "num_pairs": options.rounds_or(case.num_pairs),
                "plain_ms": plain,
                "trainer_ms": ours,
                "ratio": ratio,
                "extra_ms_per_microbatch": extra_ms,
            }
        )
    print_table(("model", "plain ms", "trainer ms", "slower", "ms more per micro-batch"), rows)
    options.record(
        "loop", {"batch": BATCH, "microbatch": MICROBATCH, "threads": 1, "cases": results}, checks
    )


def measure(case: Case, num_pairs: int) -> tuple[float, float, float]:
    """Median milliseconds of a plain and of a trainer's step, and the median ratio of a pair.

    Which of the two comes first alternates.
    """
    batch = make_microbatches(case.image_size)
    with closing(TrainerLoop(case.build, batch)) as ours:
        pair: tuple[Step, Step] = (plain_loop(case.build, batch), ours.step)
        # The first steps take memory and choose kernels.
        for step in pair * NUM_WARM_UP:
            step()
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(num_pairs):
            # Alternately first: whatever drifts on the machine falls on both.
            for which in (0, 1) if number % 2 else (1, 0):
                times[which].append(timed_ms(pair[which]))
    # Of pairs that ran next to each other: what slows the machine cancels out.
    ratio = median(b / a for a, b in zip(*times, strict=True))
    return median(times[0]), median(times[1]), ratio


def timed_ms(step: Step) -> float:
    """Milliseconds of the processor that a step takes; all of it is done by this thread."""
    start = time.thread_time()
    step()
    return 1000 * (time.thread_time() - start)


def make_microbatches(image_size: int) -> Microbatches:
    """The micro-batches of one step, the same for both loops and all steps."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((BATCH, 3, image_size, image_size), generator=generator)
    targets = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
    return list(zip(images.split(MICROBATCH), targets.split(MICROBATCH), strict=True))


def plain_loop(build: Callable[[], nn.Module], batch: Microbatches) -> Step:
    """What a tutorial would write, loss read once a step; no accuracy, unlike the trainer."""
    torch.manual_seed(0)
    model = build().train()
    optimizer = SGD(model.parameters(), lr=LR, momentum=MOMENTUM)

    def step() -> float:
        optimizer.zero_grad()
        total = torch.zeros(())
        for images, target in batch:
            loss = cross_entropy(model(images), target) / len(batch)
            loss.backward()
            total += loss.detach()
        optimizer.step()
        return total.item()

    return step


class TrainerLoop:
    """The real trainer, alone in its job."""

    def __init__(self, build: Callable[[], nn.Module], batch: Microbatches) -> None:
        config = TrainConfig(
            data="synthetic",
            shape=Shape((1,)),
            batch_size=BATCH,
            microbatch_size=MICROBATCH,
            lr_schedule="constant",
            lr=LR,
            momentum=MOMENTUM,
            weight_decay=0.0,
        )
        torch.manual_seed(0)
        self._batch = batch
        self._trainer = Trainer(config, alone(config), build(), load_recipe(config), Meters())
        self._count = 0

    def step(self) -> float:
        """One step; returns its loss."""
        work = StepWork(
            seed=0,
            step=self._count,
            first=0,
            sizes=[MICROBATCH] * len(self._batch),
            num_samples=BATCH,
        )
        self._count += 1
        sums = self._trainer.step(work, self._batches(), STEPS_PER_EPOCH).sums
        assert sums is not None, "its only stage is the last"
        return sums.loss

    def close(self) -> None:
        """Ends the trainer."""
        self._trainer.close()

    def _batches(self) -> Iterator[Batch]:
        return (Batch((images,), target, 0) for images, target in self._batch)


def alone(config: TrainConfig) -> Session:
    """The session of a job of one rank."""
    # What torchrun may have set around this benchmark does not count.
    environ = {name: value for name, value in os.environ.items() if name != "RANK"}
    env = RankEnv.from_mapping(environ)
    arrival = arrive(config, env, open_store(env, config.timeout_s))
    return join(config, arrival, ways_of(config, arrival).members)
