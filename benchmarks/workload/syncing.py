"""One sync of gradients that are all there: each scheme in turn, on the same ranks.

A scheme has its own copy of the parameters, so no two of them share memory or hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from benchmarks.cluster.forked import Seat, Timing, timings_on
from benchmarks.cluster.hosts import Wire, open_hosts
from benchmarks.network.wire import check
from benchmarks.workload.ours import Sync, SyncChoice
from bundlerun.launcher.choices import ExchangeDtype

MIB = 2**20
NUM_TENSORS = 160
_TOLERANCE: dict[ExchangeDtype, float] = {
    "float32": 1e-5,
    "bfloat16": 2e-2,
    "int8": 4e-2,
    "int4": 0.3,
}
"""Of one sync, whose rounding the next one makes up for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Replicas of one stage, and what they sum."""

    num_hosts: int
    ranks_per_host: int
    mbit_per_s: float
    num_bytes: int = 16 * MIB
    num_tensors: int = NUM_TENSORS

    @property
    def wire(self) -> Wire:
        """The link of every host."""
        return Wire(mbit_per_s=self.mbit_per_s)

    @property
    def least_bytes(self) -> float:
        """What each host must send at least, in float32: 2 S (N-1)/N."""
        return 2 * self.num_bytes * (self.num_hosts - 1) / self.num_hosts

    def parameters(self) -> list[Parameter]:
        """A new set of parameters."""
        count = self.num_bytes // 4
        edges = [count * i // self.num_tensors for i in range(self.num_tensors + 1)]
        flat = torch.zeros(count)
        return [Parameter(flat[a:b].clone()) for a, b in pairwise(edges)]


class Scheme(Protocol):
    """A way to sum; collective: every rank."""

    tolerance: float
    note: str

    def prepare(self, gradients: Sequence[Tensor]) -> None:
        """Puts this rank's gradients there."""

    def sync(self) -> None:
        """Sums them; this is timed."""

    def sums(self) -> list[Tensor]:
        """What came out."""


class Flat:
    """One `torch.distributed.all_reduce` of everything."""

    tolerance = _TOLERANCE["float32"]
    note = ""

    def __init__(self, setting: Setting, seat: Seat) -> None:
        self._shapes = [p.numel() for p in setting.parameters()]
        self._flat = torch.empty(sum(self._shapes))

    def prepare(self, gradients: Sequence[Tensor]) -> None:
        """Puts this rank's gradients there."""
        torch.cat(list(gradients), out=self._flat)

    def sync(self) -> None:
        """Sums them."""
        dist.all_reduce(self._flat)

    def sums(self) -> list[Tensor]:
        """What came out."""
        return list(self._flat.split(self._shapes))


class PerParameter:
    """One `all_reduce` per parameter, after the backward."""

    tolerance = _TOLERANCE["float32"]
    note = ""

    def __init__(self, setting: Setting, seat: Seat) -> None:
        self._tensors = [torch.empty_like(p) for p in setting.parameters()]

    def prepare(self, gradients: Sequence[Tensor]) -> None:
        """Puts this rank's gradients there."""
        for tensor, gradient in zip(self._tensors, gradients, strict=True):
            tensor.copy_(gradient)

    def sync(self) -> None:
        """Sums them."""
        for tensor in self._tensors:
            dist.all_reduce(tensor)

    def sums(self) -> list[Tensor]:
        """What came out."""
        return self._tensors


class Ours:
    """`bundlerun.workers.sync.gradient_sync`."""

    def __init__(self, setting: Setting, seat: Seat, choice: SyncChoice) -> None:
        self.tolerance = _TOLERANCE[choice.exchange_dtype]
        self._parameters = setting.parameters()
        self._sync = Sync(seat, self._parameters, choice)
        self.note = self._sync.chosen

    def prepare(self, gradients: Sequence[Tensor]) -> None:
        """Puts this rank's gradients there."""
        self._sync.fill(gradients)

    def sync(self) -> None:
        """Sums them."""
        self._sync.finish()

    def sums(self) -> list[Tensor]:
        """What came out."""
        return [p.grad for p in self._parameters if p.grad is not None]


Builder = Callable[[Setting, Seat], Scheme]
FLAT: Mapping[str, Builder] = {"flat all-reduce": Flat}
PER_PARAMETER: Mapping[str, Builder] = {"per parameter": PerParameter}


def ours(choices: Sequence[SyncChoice]) -> dict[str, Builder]:
    """Our schemes by the name of their choice."""
    return {choice.name: partial(Ours, choice=choice) for choice in choices}


def measure(
    setting: Setting, schemes: Mapping[str, Builder], num_rounds: int
) -> dict[str, list[Timing]]:
    """Times every scheme once a round, in turn; the first of them, not counted, is checked.

    Raises:
        RuntimeError: a scheme gave wrong sums.
    """
    with open_hosts(setting.num_hosts, setting.wire) as hosts:
        check(hosts)
        main = partial(_rank, setting, schemes, num_rounds)
        return timings_on(hosts, setting.ranks_per_host, main)


def median_ms(timings: Sequence[Timing]) -> float:
    """The median time, milliseconds."""
    return 1000 * float(median(t.seconds for t in timings))


def ratio(slow: Sequence[Timing], fast: Sequence[Timing]) -> float:
    """How many times faster, the median over rounds."""
    return float(median(a.seconds / b.seconds for a, b in zip(slow, fast, strict=True)))


def _rank(
    setting: Setting, schemes: Mapping[str, Builder], num_rounds: int, seat: Seat
) -> list[dict[str, object]]:
    seat.join_torch()
    made = {name: build(setting, seat) for name, build in schemes.items()}
    generator = torch.Generator().manual_seed(seat.env.rank)
    # Different on each rank, so that a sum that leaves one out is noticed.
    gradients = [torch.randn(p.shape, generator=generator) for p in setting.parameters()]
    answers: list[dict[str, object]] = []
    for number in range(num_rounds + 1):
        for name, scheme in made.items():
            scheme.prepare(gradients)
            timing = seat.timed(scheme.sync)
            # The round to warm up is the one that is checked: checking sends data of its own.
            if number == 0:
                _check(name, scheme, gradients)
            else:
                answers.append({"scheme": name, "note": scheme.note, **timing})
    return answers


def _check(name: str, scheme: Scheme, gradients: Sequence[Tensor]) -> None:
    wanted = torch.cat(list(gradients))
    dist.all_reduce(wanted)
    error = (torch.cat(scheme.sums()) - wanted).norm() / wanted.norm()
    # "not <=" also refuses NaN.
    if not error <= scheme.tolerance:
        raise RuntimeError(f"{name}: the sums are off by {float(error):.2e}")
