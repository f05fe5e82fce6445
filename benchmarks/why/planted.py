"""A recipe into which a cause is planted: it is slow, or stands, at a place of one rank.

the file WHY_PLANT_FILE    {"place": "forward", "act": "sleep", "seconds": 0.03, "node": "n1"}

It begins once the file is there, and ends with it. What is not planted takes its time asleep: the
machine of a benchmark may be busy with other things.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from benchmarks.faults.inject import NODE_VARIABLE
from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.recipe import DataInfo, DataSets

FILE_VARIABLE = "WHY_PLANT_FILE"
PAUSE_S = 0.004
"""A forward of a stage, and a backward."""
_IS_BUSY = bool(os.environ.get("WHY_BUSY"))
"""It computes instead: what other programs on its core have to do with."""
_NUM_SAMPLES = int(os.environ.get("WHY_SAMPLES", "640"))
"""Of an epoch, which is told when it ends."""
_WIDEST = 64
ANY = -1


def stuck() -> None:
    """Waits for what never comes."""
    while True:
        time.sleep(1.0)


def pause() -> None:
    """What a pass of a stage takes."""
    if not _IS_BUSY:
        time.sleep(PAUSE_S)
        return
    until = time.thread_time() + PAUSE_S
    while time.thread_time() < until:
        sum(range(1000))


def held() -> None:
    """Never gives the interpreter back."""
    re.match("(a+)+$", "a" * 60 + "b")  # in C, and for longer than anybody lives


class Plant:
    """What is planted at the moment, if it is meant for this process."""

    def __init__(self) -> None:
        self._file = Path(os.environ.get(FILE_VARIABLE, "/nonexistent"))
        self._node = os.environ.get(NODE_VARIABLE)
        self._local_rank = int(os.environ.get("LOCAL_RANK", "0"))

    def pass_by(self, place: str, stage: int = ANY) -> bool:
        """Does what is planted at `place`, where it is; whether what follows is left out."""
        try:
            told: dict[str, Any] = json.loads(self._file.read_text())
        except OSError:
            return False
        is_here = (
            told["place"] == place
            and told.get("node") in (None, self._node)
            and told.get("local_rank") in (None, self._local_rank)
            and told.get("stage") in (None, stage)
        )
        if is_here:
            self._do(told["act"], float(told.get("seconds", 0.0)))
        return is_here and told["act"] == "drop"

    def _do(self, act: str, seconds: float) -> None:
        if act == "sleep":
            time.sleep(seconds)
        elif act == "stuck":
            stuck()
        elif act == "held":
            held()
        elif act == "pipe":
            pipe = self._file.with_name(f"pipe-{self._node}")
            if not pipe.exists():
                os.mkfifo(pipe)
            pipe.read_bytes()  # nobody writes


class _Timed(torch.autograd.Function):
    """Takes its time in both directions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plant: Plant, stage: int) -> Tensor:  # noqa: ANN401
        ctx.plant, ctx.stage = plant, stage
        pause()
        plant.pass_by("pass", stage)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:  # noqa: ANN401
        pause()
        for place in ("pass", "backward"):
            ctx.plant.pass_by(place, ctx.stage)
        return gradients[0], None, None


class _Scaled(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Stage(nn.Module):
    """One stage: a small layer, and one that is only there to be sent."""

    def __init__(self, plant: Plant, stage: int, width: int, ballast: int) -> None:
        super().__init__()
        # What is wide is there to be sent, and not to compute.
        self.layer = nn.Linear(width, width) if width <= _WIDEST else _Scaled(width)
        self.ballast = nn.Parameter(torch.zeros(ballast)) if ballast else None
        self._plant, self._number = plant, stage

    def forward(self, x: Tensor) -> Tensor:
        """(batch, width) to the same."""
        self._plant.pass_by("forward", self._number)
        # After the layer: what goes into stage 0 has no backward.
        x = _Timed.apply(self.layer(x), self._plant, self._number)
        return x if self.ballast is None else x + self.ballast.sum()


class Samples:
    """Numbers."""

    def __init__(self, plant: Plant, count: int, width: int) -> None:
        self._plant, self._count, self._width = plant, count, width

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self._plant.pass_by("data", 0)
        return torch.full((self._width,), float(index % 7)), torch.tensor(float(index % 3))


class Slowed(SGD):
    """An optimizer with a place for a cause."""

    plant: Plant

    def step(self, closure: Any = None) -> Any:  # noqa: ANN401
        """See SGD."""
        self.plant.pass_by("optimizer")
        return super().step(closure)


class Planted:
    """The recipe."""

    unit = "samples"

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._plant = Plant()
        self._width = int(os.environ.get("WHY_WIDTH", "16"))
        self._ballast = int(os.environ.get("WHY_BALLAST", "0"))

    def check(self) -> None:
        """Nothing to look for."""

    def open_data(self) -> DataSets:
        """Nothing to read."""
        return DataSets(
            train=Samples(self._plant, _NUM_SAMPLES, self._width), val=None, num_outputs=1
        )

    def model(self, info: DataInfo) -> Sequence[nn.Module]:
        """As many stages as the shape has."""
        stages = range(self._config.shape.num_stages)
        return [Stage(self._plant, i, self._width, self._ballast) for i in stages]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Of nothing in particular."""
        self._plant.pass_by("loss")
        return ((output.mean(1) - target) ** 2).mean()

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """With a place for a cause."""
        made = Slowed([p for _, p in parameters], lr=1e-6)
        made.plant = self._plant
        return made


def recipe(config: TrainConfig) -> Planted:
    """The recipe."""
    return Planted(config)
