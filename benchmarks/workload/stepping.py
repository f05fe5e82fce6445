"""A whole step of a model that sleeps, data parallel: each way to sum gradients in turn.

All ranks do the same:

forward |== one third ==|
backward                |== last layer ==|== ... ==|== first layer ==|
gradients                                |1 MiB    |1 MiB            |1 MiB
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import (
    bf16_compress_hook,
    fp16_compress_hook,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import Parameter
from torch.nn.parallel import DistributedDataParallel

from benchmarks.cluster.forked import Act, Running, Seat, Timing, timings_on
from benchmarks.cluster.hosts import Wire, open_hosts
from benchmarks.network.wire import check
from benchmarks.workload.ours import Sync, SyncChoice
from benchmarks.workload.sleeping import SleepingLayer
from bundlerun.launcher.layout.bucket_size import bucket_bytes
from bundlerun.workers.overlap import behind

_TOLERANCE = 2e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The hosts and the model."""

    num_hosts: int = 2
    ranks_per_host: int = 4
    mbit_per_s: float
    num_layers: int = 16
    tensors_per_layer: int = 10
    layer_bytes: int = 2**20
    forward_s: float = 0.4 / 3
    backward_s: float = 0.8 / 3

    @property
    def wire(self) -> Wire:
        """The link of every host."""
        return Wire(mbit_per_s=self.mbit_per_s)

    def wire_s(self, bytes_per_number: float) -> float:
        """The least time that the gradients need on a link: 2 S (N-1)/N bytes."""
        num_bytes = self.num_layers * self.layer_bytes * bytes_per_number / 4
        return self.wire.seconds(2 * num_bytes * (self.num_hosts - 1) / self.num_hosts)

    def least_s(self, bytes_per_number: float) -> float:
        """Forward, the backward of the first bucket, and the wire, which is busy from then on."""
        first = bucket_bytes(0, self.num_hosts) / (self.num_layers * self.layer_bytes)
        overlapped = self.forward_s + first * self.backward_s + self.wire_s(bytes_per_number)
        return max(self.forward_s + self.backward_s, overlapped)

    def longer_s(self, bytes_per_number: float) -> float:
        """The longer of computing and the wire: less no step takes, whatever hides behind what."""
        return max(self.forward_s + self.backward_s, self.wire_s(bytes_per_number))

    def model(self, fill: float) -> nn.Sequential:
        """The model of one rank."""
        count = self.layer_bytes // 4
        # Uneven by one number at most, and together exactly the layer's size.
        edges = [count * i // self.tensors_per_layer for i in range(self.tensors_per_layer + 1)]
        sizes = [b - a for a, b in pairwise(edges)]
        return nn.Sequential(
            *(
                SleepingLayer(
                    sizes,
                    forward_s=self.forward_s / self.num_layers,
                    backward_s=self.backward_s / self.num_layers,
                    fill=fill,
                )
                for _ in range(self.num_layers)
            )
        )


class Scheme(Protocol):
    """A way to do a step; collective: every rank."""

    def step(self) -> None:
        """Forward, backward, and the sums; this is timed."""

    def check(self, mean: float) -> None:
        """Raises RuntimeError where a gradient is neither the mean nor the sum."""


class _Model:
    """What all schemes have."""

    def __init__(self, setting: Setting, seat: Seat) -> None:
        self.seat = seat
        self.model = setting.model(fill=seat.env.rank + 1)
        self.x = torch.zeros(1, requires_grad=True)
        # Ours sums; DDP and fully_shard divide by the number of ranks.
        self.divisor = 1

    def check(self, mean: float) -> None:
        """Raises RuntimeError where a gradient is neither the mean nor the sum."""
        wanted = mean * self.seat.env.world_size / self.divisor
        for gradient in self.gradients():
            if not torch.allclose(gradient, torch.tensor(wanted), rtol=_TOLERANCE):
                found = float(gradient.mean())
                raise RuntimeError(f"{type(self).__name__}: a gradient is {found}, not {wanted}")

    def gradients(self) -> list[Tensor]:
        """As they are after the sync."""
        return [p.grad for p in self.model.parameters() if p.grad is not None]


class Ours(_Model):
    """`bundlerun.workers.sync.gradient_sync`."""

    def __init__(self, setting: Setting, seat: Seat, choice: SyncChoice) -> None:
        super().__init__(setting, seat)
        self._sync = Sync(seat, list(self.model.parameters()), choice)

    def step(self) -> None:
        """Forward, backward, and the sums."""
        self._sync.start_step()
        loss = self.model(self.x).sum()
        self._sync.arm()
        loss.backward()
        self._sync.finish()


class Behind(_Model):
    """The same with an exchange that is hidden behind the next forward, too.

    A step ends when its last backward has; its sums are those that come behind the next one.
    """

    def __init__(self, setting: Setting, seat: Seat, choice: SyncChoice) -> None:
        super().__init__(setting, seat)
        named = replace(choice, name_apart="behind")
        self._sync = Sync(seat, list(self.model.parameters()), named)
        self._found: dict[Parameter, Tensor] = {}
        self._behind = behind.Behind(self._sync.own.coming)
        self._forward = self._behind.around([self.model])[0]

    def step(self) -> None:
        """Forward, while sums of the step before come; backward."""
        sync = self._sync.own
        sync.start_step()
        loss = self._forward(self.x).sum()
        sync.extra[0] = sync.headway
        self._sync.arm()
        loss.backward()
        sync.launch()
        to_come = sync.take_small()
        sync.lead(float(sync.extra[0]))
        self._behind.leave(to_come, self._change)

    def _change(self, parameters: Sequence[Parameter]) -> None:
        self._found |= {p: p.grad for p in parameters if p.grad is not None}

    def settle(self) -> None:
        """Waits for what the last step has left."""
        self._behind.settle()

    def gradients(self) -> list[Tensor]:
        """As the optimizer has had them last."""
        self.settle()
        return list(self._found.values())


class Ddp(_Model):
    """torch's DistributedDataParallel.

    Args:
        hook: compresses what is sent.
        bucket_mb: None: torch's default.
    """

    def __init__(
        self,
        setting: Setting,
        seat: Seat,
        hook: Callable[..., Any] | None = None,
        bucket_mb: float | None = None,
    ) -> None:
        super().__init__(setting, seat)
        self._wrapped = DistributedDataParallel(self.model, bucket_cap_mb=bucket_mb)
        if hook is not None:
            self._wrapped.register_comm_hook(None, hook)
        self.divisor = seat.env.world_size

    def step(self) -> None:
        """Forward, backward, and the sums."""
        self._wrapped.zero_grad()
        self._wrapped(self.x).sum().backward()


class PerParameter(_Model):
    """One `all_reduce` per parameter, after the backward."""

    def step(self) -> None:
        """Forward, backward, and the sums."""
        self.model.zero_grad()
        self.model(self.x).sum().backward()
        for gradient in self.gradients():
            dist.all_reduce(gradient)


class Hsdp(_Model):
    """torch's fully_shard: sharded inside a host, replicated over hosts."""

    def __init__(self, setting: Setting, seat: Seat) -> None:
        super().__init__(setting, seat)
        shape = (setting.num_hosts, setting.ranks_per_host)
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("host", "rank"))
        for layer in self.model:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.model, mesh=mesh)
        self.divisor = seat.env.world_size

    def step(self) -> None:
        """Forward, backward, and the sums."""
        self.model.zero_grad()
        self.model(self.x).sum().backward()

    def gradients(self) -> list[Tensor]:
        """The shards of this rank."""
        return [p.grad.to_local() for p in self.model.parameters()]  # type: ignore[union-attr]


Builder = Callable[[Setting, Seat], Scheme]
BASELINES: Mapping[str, Builder] = {
    "DDP": Ddp,
    "DDP, fp16 hook": partial(Ddp, hook=fp16_compress_hook),
    "DDP, bf16 hook": partial(Ddp, hook=bf16_compress_hook),
    "DDP, 4 MB buckets": partial(Ddp, bucket_mb=4.0),
    "HSDP (fully_shard)": Hsdp,
    "per parameter": PerParameter,
}


def ours(choices: Sequence[SyncChoice]) -> dict[str, Builder]:
    """Our schemes by the name of their choice."""
    return {choice.name: partial(Ours, choice=choice) for choice in choices}


def behind_forward(choices: Sequence[SyncChoice]) -> dict[str, Builder]:
    """The same with --overlap-forward."""
    return {behind_name(choice): partial(Behind, choice=choice) for choice in choices}


def behind_name(choice: SyncChoice) -> str:
    """What tables call it."""
    return f"{choice.name}, behind the next forward"


def measure(
    setting: Setting, schemes: Mapping[str, Builder], num_rounds: int
) -> dict[str, list[Timing]]:
    """Times a step of every scheme once a round, in turn; two to warm up, of which one is checked.

    Raises:
        RuntimeError: a scheme gave wrong gradients.
    """
    with open_hosts(setting.num_hosts, setting.wire) as hosts:
        check(hosts)
        main = partial(_rank, setting, schemes, num_rounds)
        return timings_on(hosts, setting.ranks_per_host, main)


def _rank(
    setting: Setting, schemes: Mapping[str, Builder], num_rounds: int, seat: Seat
) -> list[dict[str, object]]:
    seat.join_torch()
    made = {name: build(setting, seat) for name, build in schemes.items()}
    # DDP learns the order of the gradients in its first step and makes its buckets again.
    for scheme in made.values():
        scheme.step()
        scheme.step()
        scheme.check(mean=(seat.env.world_size + 1) / 2)
    acts: dict[str, Act] = {
        name: Running(scheme.step, scheme.settle) if isinstance(scheme, Behind) else scheme.step
        for name, scheme in made.items()
    }
    return seat.timed_in_turn(acts, num_rounds)
