"""The settings whose steps are foreseen, and then measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.workload import sleeping_model
from bundlerun.launcher.choices import ScheduleName, SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    UpdateCosts,
)

NUM_CLASSES = 10
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

    def profile(self, num_stages: int, update_s_per_byte: float) -> Profile:
        """What is known of it."""
        forward_s, size = self.forward_ms / 1000, 1000 * self.weight_kb
        piece = Piece(
            forward_s=forward_s,
            backward_s=2 * forward_s,
            weight_s=forward_s,
            parameter_bytes=size,
            trained_bytes=size,
        )
        count, sent = self.blocks * num_stages, 1000 * self.pass_kb
        names = [f"{number}" for number in range(count - 1)]
        costs = ModelCosts(
            samples=1,
            pieces=(piece,) * count,
            boundaries=tuple(
                Boundary(name=name, forward_bytes=sent, backward_bytes=sent) for name in names
            ),
        )
        key = ProfileKey(model="sleeping", device="none", versions="", precision="float32")
        update = UpdateCosts(update_s_per_byte=update_s_per_byte)
        return Profile(key=key, by_samples=(costs,), update=update)


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
