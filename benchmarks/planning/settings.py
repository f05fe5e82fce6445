"""The settings whose steps are foreseen, and then measured."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from benchmarks.workload import sleeping_model
from bundlerun.launcher.choices import ScheduleName, SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.model_costs import ModelCosts
from bundlerun.splits.profile.clock import HostClock
from bundlerun.splits.profile.costs import Batch as Sizes
from bundlerun.splits.profile.costs import measured_costs
from bundlerun.splits.profile.passes import Subject
from bundlerun.splits.profile.pieces import pieces_of

NUM_CLASSES = 10
INPUT = (1, 3, 32, 32)
"""Shape of a micro-batch: (samples, channels, height, width)."""
FAST = 10_000.0
"""Mbit/s: as good as none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that sleeps, see `benchmarks.workload.sleeping_model`; micro-batches of a sample.

    Args:
        blocks: of a stage.
        forward_ms: of a block.
        weight_kb: of a block's parameters.
        pass_kb: that a block passes on.
    """

    blocks: int = 2
    forward_ms: int = 20
    weight_kb: int = 2000
    pass_kb: int = 100

    def variable(self, num_stages: int) -> str:
        """What tells `build` of it."""
        numbers = (num_stages, self.blocks, self.forward_ms, self.weight_kb, self.pass_kb)
        return ",".join(map(str, numbers))

    def measured(self, num_stages: int) -> ModelCosts:
        """What its blocks cost, as `bundlerun profile` measures it; each is a piece.

        By the time on the wall: what sleeps takes no time of the processor.
        """
        torch.set_num_threads(1)  # as each rank has
        stages = sleeping_model.make_stages(self.variable(num_stages), NUM_CLASSES)
        pieces = pieces_of([block for stage in stages for block in stage], "auto", ())
        given = torch.zeros(INPUT)
        subject = Subject(
            forward=pieces.forward,
            count=pieces.count,
            inputs=lambda: (given,),
            judge=lambda output: output.mean(),
        )
        sizes = Sizes(samples=1, input_bytes=given.nbytes, target_bytes=8)
        return measured_costs(pieces, subject, sizes, HostClock(time.perf_counter))


USUAL, LONG_MESSAGES, LARGE = Model(), Model(weight_kb=100, pass_kb=5000), Model(weight_kb=8000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A plan, and the hosts that it runs on.

    Args:
        model: what is trained.
        per_host: ranks of each host.
        mbit_per_s: of the link of every host.
        shape: of a bundle.
        schedule: the order of passes.
        sync: how gradients are summed.
        microbatches: of a step.
    """

    model: Model
    per_host: tuple[int, ...]
    mbit_per_s: float
    shape: Shape
    schedule: ScheduleName = "1f1b"
    sync: SchemeName = "local-master"
    microbatches: int = 8

    @property
    def name(self) -> str:
        """For tables."""
        names = {USUAL: "usual", LONG_MESSAGES: "long messages", LARGE: "large"}
        hosts = f"{len(self.per_host)}x{self.per_host[0]}"
        link = f", {self.mbit_per_s:g} Mbit/s" if len(self.per_host) > 1 else ""
        order = f", {self.schedule}" if self.shape.num_stages > 1 else ""
        return f"{names[self.model]}, {self.shape}{order}, {self.sync}, {hosts}{link}"

    @property
    def variables(self) -> dict[str, str]:
        """Of the environment."""
        return {sleeping_model.VARIABLE: self.model.variable(self.shape.num_stages)}

    def config(self, run_dir: str) -> TrainConfig:
        """Of its run."""
        return TrainConfig(
            data="synthetic",
            model=f"{sleeping_model.__file__}:build",
            shape=self.shape,
            schedule=self.schedule,
            sync=self.sync,
            num_classes=NUM_CLASSES,
            image_size=32,
            batch_size=self.microbatches,
            microbatch_size=1,
            lr_schedule="constant",
            lr=0.01,
            run_dir=run_dir,
        )


def cases() -> Iterator[Case]:
    """All of them."""
    data, two, uneven = Shape((1,)), Shape((1, 1)), Shape((2, 1))
    yield Case(model=USUAL, per_host=(2,), mbit_per_s=FAST, shape=two)
    yield Case(model=USUAL, per_host=(2,), mbit_per_s=FAST, shape=two, schedule="zero-bubble")
    yield Case(model=LONG_MESSAGES, per_host=(1, 1), mbit_per_s=1000, shape=two)
    for schedule in ("eager-1f1b", "gpipe", "zero-bubble"):
        yield Case(
            model=LONG_MESSAGES, per_host=(1, 1), mbit_per_s=1000, shape=two,
            schedule=schedule,
        )  # fmt: skip
    yield Case(model=LONG_MESSAGES, per_host=(1, 1), mbit_per_s=400, shape=two)
    yield Case(model=USUAL, per_host=(3,), mbit_per_s=FAST, shape=uneven)
    yield Case(model=USUAL, per_host=(1, 1, 1), mbit_per_s=200, shape=uneven, schedule="eager-1f1b")
    yield Case(model=LARGE, per_host=(4,), mbit_per_s=FAST, shape=data)
    yield Case(model=USUAL, per_host=(2, 2), mbit_per_s=200, shape=data)
    yield Case(model=LARGE, per_host=(2, 2), mbit_per_s=1000, shape=data, sync="sharded")
    yield Case(model=LARGE, per_host=(2, 2), mbit_per_s=1000, shape=data, sync="flat")
    yield Case(model=USUAL, per_host=(1, 1, 1), mbit_per_s=400, shape=data, microbatches=9)
    yield Case(model=LARGE, per_host=(2, 2), mbit_per_s=400, shape=two)
    yield Case(model=USUAL, per_host=(1, 1, 1, 1), mbit_per_s=400, shape=two, schedule="eager-1f1b")
