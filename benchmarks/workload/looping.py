"""The same model in two loops of a user's own: over `Bundle`, and over torch's own pipelining.

torch's tracer cuts it where `Bundle` does; its 1F1B does as many micro-batches of the same size.
Layers rest instead of computing, by an operation of torch's library, which a tracer takes as it is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch._dynamo
import torch.distributed as dist
import torch.export
from torch import Tensor, nn
from torch.distributed.pipelining import Schedule1F1B, SplitPoint, pipeline
from torch.optim import SGD

from benchmarks.cluster.forked import (
    Seat,
    Timing,
    launcher_variables,
    run_ranks,
    timings_by_scheme,
)
from benchmarks.cluster.hosts import Wire, open_hosts
from benchmarks.network.wire import check
from bundlerun import Bundle, Cut

WIDTH, LENGTH, CLASSES = 512, 152, 10
CUT = "layers.1"
FORWARD_S, BACKWARD_S = 0.020, 0.040


@torch.library.custom_op("bundlerun_benchmarks::rest", mutates_args=())
def rest(x: Tensor, seconds: float) -> Tensor:
    """A copy of `x`, some time later."""
    time.sleep(seconds)
    return x.clone()


@rest.register_fake
def _(x: Tensor, seconds: float) -> Tensor:
    return torch.empty_like(x)


def _rest_backward(_: object, gradient: Tensor) -> tuple[Tensor, None]:
    return rest(gradient, BACKWARD_S), None


rest.register_autograd(_rest_backward)


class Resting(nn.Module):
    """Scales its input, and takes a while for it, forwards and backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((WIDTH,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """As large as `x`."""
        result: Tensor = rest(x * self.scale, FORWARD_S)
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A bundle of two stages, each on a host of its own; texts of `LENGTH` words."""

    samples: int = 8
    num_microbatches: int = 8
    mbit_per_s: float = 1000

    @property
    def activation_bytes(self) -> int:
        """What crosses the cut for one micro-batch, each way."""
        return 4 * self.samples * LENGTH * WIDTH

    @property
    def batch_size(self) -> int:
        """Samples of a step."""
        return self.samples * self.num_microbatches


class Words(nn.Module):
    """Two equal layers on each word, then a head on their mean; made without random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Resting() for _ in range(2))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch, classes) of (batch, length, width)."""
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


class Loop(Protocol):
    """One way to do a step; collective."""

    def step(self) -> None:
        """One step, optimizer included; this is timed."""

    def losses(self, count: int) -> list[float]:
        """Those of steps, on the rank that has the rear; else nothing."""


class OfBundle:
    """A loop over `bundlerun.Bundle`."""

    def __init__(self, setting: Setting, seat: Seat) -> None:
        os.environ.update(launcher_variables(seat.env))
        os.environ["BUNDLERUN_LOCAL_ADDR"] = seat.env.local_addr
        x, self._targets = batch(setting)
        self._bundle = Bundle.of(
            model(),
            nn.functional.cross_entropy,
            x[:2],
            batch_size=setting.batch_size,
            cut=Cut(at=(CUT,), microbatch_size=setting.samples),
        )
        self._x = x
        self._optimizer = SGD(self._bundle.parameters(), lr=0.1)

    def step(self) -> None:
        """One step, optimizer included."""
        self._step()

    def _step(self) -> float:
        loss = self._bundle.step(self._x, self._targets)
        self._optimizer.step()
        return loss

    def losses(self, count: int) -> list[float]:
        """Of the steps that it does."""
        return [self._step() for _ in range(count)]


class OfTorch:
    """A loop over `torch.distributed.pipelining`, its tracer and its schedule of one step."""

    def __init__(self, setting: Setting, seat: Seat) -> None:
        rank = seat.env.rank
        x, targets = batch(setting)
        net = model()
        split = {CUT: SplitPoint.BEGINNING}
        traced = pipeline(net, mb_args=(x[: setting.samples],), split_spec=split)
        stage = traced.build_stage(rank, torch.device("cpu"))
        self._optimizer = SGD(stage.submod.parameters(), lr=0.1)
        self._schedule = Schedule1F1B(
            stage, setting.num_microbatches, loss_fn=nn.functional.cross_entropy
        )
        self._inputs = (x,) if rank == 0 else ()
        self._targets = targets if rank else None

    def step(self) -> None:
        """One step, optimizer included."""
        self._step([])

    def _step(self, losses: list[Tensor]) -> None:
        self._optimizer.zero_grad()
        self._schedule.step(*self._inputs, target=self._targets, losses=losses)
        self._optimizer.step()

    def losses(self, count: int) -> list[float]:
        """Of the steps that it does."""
        found = []
        for _ in range(count):
            losses: list[Tensor] = []
            self._step(losses)
            found += [torch.stack(losses).mean().item()] if losses else []
        return found


LOOPS: Mapping[str, Any] = {"bundlerun": OfBundle, "torch 1F1B": OfTorch}


def model() -> nn.Module:
    """The model, the same each time."""
    torch.manual_seed(0)
    return Words()


def batch(setting: Setting) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a step."""
    torch.manual_seed(1)
    x = torch.randn(setting.batch_size, LENGTH, WIDTH)
    return x, torch.arange(setting.batch_size) % CLASSES


def measure(setting: Setting, num_rounds: int) -> tuple[dict[str, list[Timing]], float]:
    """Times a step of each loop once a round, in turn; and how far their losses are apart."""
    with open_hosts(2, Wire(mbit_per_s=setting.mbit_per_s)) as hosts:
        check(hosts)
        answers = run_ranks(hosts, (1, 1), partial(_rank, setting, num_rounds))
    rear = answers[1]["losses"]
    apart = max(abs(a - b) for a, b in zip(*rear.values(), strict=True))
    return timings_by_scheme([answer["timings"] for answer in answers]), apart


def _rank(setting: Setting, num_rounds: int, seat: Seat) -> dict[str, Any]:
    seat.join_torch()
    made: dict[str, Loop] = {name: make(setting, seat) for name, make in LOOPS.items()}
    losses = {}
    for name, loop in made.items():
        losses[name] = loop.losses(3)
        dist.barrier()
    acts = {name: loop.step for name, loop in made.items()}
    return {"losses": losses, "timings": seat.timed_in_turn(acts, num_rounds)}
