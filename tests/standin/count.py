"""What a step of the trainer costs a device in waits and operations, counted on the stand-in.

`python -m tests.standin.count` prints a table; `--places` adds who asked for what.

waits        times that the thread of the steps waits for the device, in a step of a whole run
operations   what streams are given beyond what a plain loop gives its one, for a micro-batch and
             for a step; from runs of steps of two lengths. Without those of snapshots, which have
             a stream and a thread of their own. In a plain loop each batch norm counts its
             batches, one operation each; the trainer does that once a step, for all of them
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed import Store
from torch.nn.functional import cross_entropy

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.pipeline.loss import LossCheck
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.recipe import DataInfo, Recipe, load_recipe
from bundlerun.workers.snapshot import room
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from tests.ranks.harness import run_ranks
from tests.standin.device import KIND, Device
from tests.standin.places import Record
from tests.standin.ranks import on_standin

SAMPLES = 2
"""Of a micro-batch."""
LENGTHS = (2, 4)
"""Micro-batches of a step, in two runs."""
NUM_STEPS = 6
_BESIDE = "workers/snapshot/"
FIRST = 4
"""The first step that is counted: before it, memory is taken and things are checked once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A way to train.

    Args:
        name: of it.
        shape: devices of each stage.
        num_ranks: on one node.
        options: of the run, beyond the usual ones.
    """

    name: str
    shape: tuple[int, ...] = (1,)
    num_ranks: int = 1
    options: Mapping[str, Any]


CASES = (
    Case(name="alone", options={}),
    Case(name="--clip-norm", options={"clip_norm": 1.0}),
    Case(name="replica", num_ranks=2, options={}),
    Case(name="replica, --clip-norm", num_ranks=2, options={"clip_norm": 1.0}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What one step of one rank came to.

    Args:
        waits: of the thread of the steps, by place.
        operations: by place and name, as "PLACE NAME".
    """

    waits: Counter[str]
    operations: Counter[str]

    @property
    def of_step(self) -> Counter[str]:
        """Operations without those of snapshots, which go beside the steps."""
        return Counter({k: n for k, n in self.operations.items() if not k.startswith(_BESIDE)})

    @classmethod
    def of(cls, record: Record) -> Counts:
        """All that has been seen so far."""
        by_place = record.by_place
        return cls(
            waits=record.waits.copy(),
            operations=Counter({f"{where} {what}": n for (where, what), n in by_place.items()}),
        )

    def since(self, before: Counts) -> Counts:
        """What has come since."""
        return Counts(
            waits=self.waits - before.waits,
            operations=self.operations - before.operations,
        )


def config_of(model: str, case: Case, num_microbatches: int, folder: Path) -> TrainConfig:
    """A run of that many micro-batches a step."""
    size = SAMPLES * num_microbatches * case.num_ranks
    config = TrainConfig(
        data="synthetic",
        model=model,
        shape=Shape(case.shape),
        synthetic_samples=size * NUM_STEPS,
        image_size=32,
        augment="none",
        batch_size=size,
        microbatch_size=SAMPLES,
        epochs=1,
        validate=False,
        share="equal",
        sync="flat",
        transport="nccl" if case.num_ranks > 1 else "auto",
        timeout_s=60.0,
        run_dir=str(folder / "run"),
    )
    return replace(config, **case.options)


def counted(
    config: TrainConfig, num_ranks: int, folder: Path, plant: Callable[[], None] = lambda: None
) -> list[Counts]:
    """The counts of each rank for one step, from its beginning to the next one's.

    Args:
        config: of the run.
        num_ranks: on one node.
        folder: for what they leave.
        plant: called in each rank before it trains.
    """

    def main(env: RankEnv, store: Store, device: Device) -> None:
        room.SHARED_MEMORY = folder
        LossCheck.SAMPLES = 0  # it looks at the first samples of a run only
        seen: list[Counts] = []
        step = Trainer.step

        def watched(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            seen.append(Counts.of(device.record))
            return step(self, *args, **kwargs)

        device.record.keeps_places = True
        Trainer.step = watched
        plant()
        train(config, env, store)
        _write(folder / f"{env.rank}.json", seen[FIRST + 1].since(seen[FIRST]))

    run_ranks((num_ranks,), on_standin(main), folder, timeout_s=300)
    return [_read(folder / f"{rank}.json") for rank in range(num_ranks)]


def counted_plain(config: TrainConfig, folder: Path) -> Counts:
    """The counts of a step of a plain loop that does the same."""

    def main(env: RankEnv, store: Store, device: Device) -> None:
        recipe = load_recipe(config)
        data = recipe.open_data()
        info = DataInfo(num_train=len(data.train), num_val=0, num_outputs=data.num_outputs)
        model = recipe.model(info)
        assert isinstance(model, nn.Module)
        model.to(KIND).train()
        optimizer = recipe.optimizer(model.named_parameters())
        step = plain_step(config, recipe, model, optimizer)
        device.record.keeps_places = True
        step()
        before = Counts.of(device.record)
        step()
        _write(folder / "plain.json", Counts.of(device.record).since(before))

    run_ranks((1,), on_standin(main), folder, timeout_s=300)
    return _read(folder / "plain.json")


def plain_step(
    config: TrainConfig, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """A step as a tutorial has it, with the recipe's metrics, and clipped where the run clips."""
    image = torch.randn(SAMPLES, 3, config.image_size, config.image_size).pin_memory()
    target = torch.zeros(SAMPLES, dtype=torch.int64).pin_memory()

    def step() -> None:
        optimizer.zero_grad()
        for _ in range(config.batch_size // SAMPLES):
            wanted = target.to(KIND, non_blocking=True)
            output = model(image.to(KIND, non_blocking=True))
            recipe.metrics(output.detach(), wanted)
            (cross_entropy(output, wanted) * 0.5).backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        optimizer.step()

    return step


def _write(path: Path, counts: Counts) -> None:
    path.write_text(json.dumps({"waits": counts.waits, "operations": counts.operations}))


def _read(path: Path) -> Counts:
    parts = json.loads(path.read_text())
    return Counts(**{name: Counter(part) for name, part in parts.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """What the trainer gives a device beyond what a plain loop does.

    Args:
        waits: in a step, by place, of the rank that waits most.
        per_microbatch: operations.
        per_step: operations, besides those.
        at_microbatch: who asks for something in each micro-batch, plain loops included.
        at_step: who asks for something once a step.
    """

    waits: Counter[str]
    per_microbatch: float
    per_step: float
    at_microbatch: Counter[str]
    at_step: Counter[str]

    @property
    def num_waits(self) -> int:
        return self.waits.total()


def extra(model: str, case: Case, folder: Path) -> Extra:
    """Counts one case."""
    ours, plain, waits = [], [], []
    for length in LENGTHS:
        own = folder / str(length)
        own.mkdir(parents=True)
        config = config_of(model, case, length, own)
        found = counted(config, case.num_ranks, own)
        waits.append(max((each.waits for each in found), key=Counter.total))
        ours.append(max((each.of_step for each in found), key=Counter.total))
        plain.append(counted_plain(replace(config, batch_size=SAMPLES * length), own).of_step)
    per_microbatch, per_step = _line(*map(Counter.total, ours))
    plain_per_microbatch, plain_per_step = _line(*map(Counter.total, plain))
    steady = ours[1] - ours[0]
    return Extra(
        waits=max(waits, key=Counter.total),
        per_microbatch=per_microbatch - plain_per_microbatch,
        per_step=per_step - plain_per_step,
        at_microbatch=steady,
        at_step=Counter({k: n for k, n in ours[0].items() if k not in steady}),
    )


def _line(short: int, long: int) -> tuple[float, float]:
    """What each micro-batch adds, and what a step has besides."""
    slope = (long - short) / (LENGTHS[1] - LENGTHS[0])
    return slope, short - slope * LENGTHS[0]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.standin.count", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="resnet50", help="of torchvision (default: resnet50)")
    parser.add_argument("--places", action="store_true", help="tell who asked for what")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.model:24} | waits per step | operations per micro-batch | per step")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="bundlerun-count-") as folder:
            found = extra(args.model, case, Path(folder))
        print(
            f"{case.name:24} | {found.num_waits:14} | {found.per_microbatch:+26.1f} "
            f"| {found.per_step:+8.1f}",
            flush=True,
        )
        if args.places:
            _print_places("waits", found.waits)
            _print_places(
                "in each micro-batch, those of a plain loop included", found.at_microbatch
            )
            _print_places("once a step, those of a plain loop included", found.at_step)


def _print_places(title: str, counter: Counter[str]) -> None:
    print(f"    {title}")
    for place, number in counter.most_common():
        print(f"    {number:6}  {place}")


if __name__ == "__main__":
    main()
