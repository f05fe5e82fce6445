"""What the trainer adds to the work of a model, counted: operations, and waits for the device.

    added = operations of a step of the trainer - those of a plain loop with the same model,
            micro-batches, metrics and optimizer

The plain loop does not count its batch norms' calls, as the trainer does that once a step.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._C._distributed_c10d import FileStore
from torch.nn.modules.batchnorm import _NormBase
from torchvision.models import resnet50

from benchmarks.cluster.forked import rank_envs
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.counted import Counted
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.rank.arrival.session import arrive, join
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import load_recipe
from bundlerun.workers.step import StepWork
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.trainer import Trainer

CLAIM = "at most 12 operations more per micro-batch and 30 per step, and 2 waits for the device"
PER_MICROBATCH, PER_STEP, WAITS = 12, 30, 2
"""Most of each."""
BUCKET_MB = 25.0
"""As over NCCL; between processes on CPUs buckets are shorter, and each costs a copy."""
CASES: Mapping[str, Mapping[str, Any]] = {
    "alone": {},
    "with clipping": {"clip_norm": 1.0},
    "leaves out steps": {"on_nan": "skip"},
    "replica": {"num_ranks": 2, "bucket_mb": BUCKET_MB},
    "replica with clipping": {"num_ranks": 2, "bucket_mb": BUCKET_MB, "clip_norm": 1.0},
}
MICROBATCH, IMAGE_SIZE, NUM_CLASSES, LR = 2, 32, 10, 0.001
NUM_WARM_UP = 2
"""Steps; the first one compares losses, and looks for what a forward writes."""
TIMEOUT_S = 120.0

Build = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What the trainer adds to a plain loop."""

    per_microbatch: float
    per_step: float
    num_waits: int
    """In a step."""


def run(options: Options) -> None:
    """Counts all cases."""
    found = {name: added(resnet50_of_ten, **case) for name, case in CASES.items()}
    rows = [(n, a.per_microbatch, a.per_step, a.num_waits) for n, a in found.items()]
    print_table(("ResNet-50", "per micro-batch", "per step", "waits"), rows)
    limits = {"per_microbatch": PER_MICROBATCH, "per_step": PER_STEP, "num_waits": WAITS}
    checks = [
        Check(f"{case}: {name}, at most", float(getattr(each, name)), limit)
        for case, each in found.items()
        for name, limit in limits.items()
    ]
    cases = [{"case": case, **{n: getattr(a, n) for n in limits}} for case, a in found.items()]
    options.record("operations", {"cases": cases}, checks)


def resnet50_of_ten() -> nn.Module:
    """The model that is counted."""
    model: nn.Module = resnet50(num_classes=NUM_CLASSES)
    return model


def added(build: Build, *, num_ranks: int = 1, **options: Any) -> Added:  # noqa: ANN401
    """What the trainer adds on one of `num_ranks` replicas of a model.

    Args:
        build: the model.
        num_ranks: replicas, on one node.
        options: of the configuration.
    """
    few, many = (_trainers_step(build, n, num_ranks, options) for n in (1, 2))
    plain_few, plain_many = (_plain_step(build, n, options) for n in (1, 2))
    first = _num(few) - _num(plain_few)
    per_microbatch = _num(many) - _num(plain_many) - first
    return Added(
        per_microbatch=per_microbatch,
        per_step=first - per_microbatch,
        num_waits=max(few.num_waits, many.num_waits),
    )


def _num(counted: Counted) -> int:
    return sum(counted.operations.values())


def _config(num_microbatches: int, options: Mapping[str, Any]) -> TrainConfig:
    return TrainConfig(
        data="synthetic",
        shape=Shape((1,)),
        batch_size=MICROBATCH * num_microbatches,
        microbatch_size=MICROBATCH,
        lr_schedule="constant",
        lr=LR,
        timeout_s=TIMEOUT_S,
        **options,
    )


def _samples(num_microbatches: int) -> Iterator[Batch]:
    for _ in range(num_microbatches):
        images = torch.randn(MICROBATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
        yield Batch((images,), torch.randint(NUM_CLASSES, (MICROBATCH,)), 0)


def _plain_step(build: Build, num_microbatches: int, options: Mapping[str, Any]) -> Counted:
    config = _config(num_microbatches, options)
    recipe, model = load_recipe(config), build().train()
    for layer in model.modules():
        if isinstance(layer, _NormBase):
            layer.num_batches_tracked = None
    optimizer = recipe.optimizer(model.named_parameters())
    for _ in range(NUM_WARM_UP + 1):
        batches = list(_samples(num_microbatches))
        optimizer.zero_grad()
        with Counted() as counted:
            for batch in batches:
                output = model(*batch.inputs)
                loss: Any = recipe.loss(output, batch.target)
                (loss / num_microbatches).backward()
                with torch.no_grad():
                    recipe.metrics(output, batch.target)
            optimizer.step()
    return counted


def _trainers_step(
    build: Build, num_microbatches: int, num_ranks: int, options: Mapping[str, Any]
) -> Counted:
    """A step of the first rank; the others are threads of this process."""
    config = _config(num_microbatches * num_ranks, options)
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        config = replace(config, run_dir=folder)
        one = partial(_one_of, config, build, Path(folder), num_ranks)
        with ThreadPoolExecutor(num_ranks) as ranks:
            counted = list(ranks.map(one, range(num_ranks)))
    return counted[0]


def _one_of(config: TrainConfig, build: Build, folder: Path, num_ranks: int, rank: int) -> Counted:
    env = rank_envs((num_ranks,))[rank]
    arrival = arrive(config, env, FileStore(str(folder / "store"), num_ranks))
    session = join(config, arrival, ways_of(config, arrival).members)
    trainer = Trainer(config, session, build(), load_recipe(config), Meters())
    trainer.copy_from_first()
    each = config.batch_size // MICROBATCH // num_ranks
    with closing(trainer):
        for step in range(NUM_WARM_UP + 1):
            work = StepWork(
                seed=0,
                step=step,
                first=rank * each,
                sizes=[MICROBATCH] * each,
                num_samples=config.batch_size,
            )
            batches = list(_samples(each))
            counted = Counted()
            with counted if rank == 0 else nullcontext():
                trainer.step(work, iter(batches), 1000)
    return counted
