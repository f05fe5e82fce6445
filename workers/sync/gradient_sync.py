"""The gradients of a stage, summed over all its replicas once a step.

    last backward  |== b0 ==|== b1 ==|== b2 ==|      a bucket leaves when its gradients are final
    collect           |b0|b1|b2|                     inside the node
    exchange             |--b0--|--b1--|--b2--|      between the nodes
    distribute                  |b0|    |b1|  |b2|   back inside the node

Buckets are the same on every replica and go in one order. The first carries the small sums of the
step, `extra`, too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.launcher.choices import SchemeChoice, SchemeName
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.flat import aligned
from bundlerun.workers.rank import device as door
from bundlerun.workers.rank.groups import Groups
from bundlerun.workers.rank.meters import Meters, Phase
from bundlerun.workers.rank.node_memory import NodeMemory
from bundlerun.workers.sync.bucket import Allocate, Bucket, cut_into_buckets
from bundlerun.workers.sync.calibrate import Calibration, Choice
from bundlerun.workers.sync.legs import Chain
from bundlerun.workers.sync.node_legs import NUM_CHANNELS, NodeArena
from bundlerun.workers.sync.rounding import Rounding
from bundlerun.workers.sync.schemes import SCHEMES, scheme_actions

_SCRATCH_NUMBERS = (1 << 10, 64 << 10)
"""Numbers that `all_sum` sums at a time: a few, or many where a forward writes to large state."""
_COPY_BYTES = 4 << 20
"""A peer that is killed in a longer gloo broadcast can leave the other side waiting (measured)."""


class Gate(Protocol):
    """What a step's buckets wait for, each rank by itself."""

    def before_first(self) -> None:
        """Returns once the first may leave."""
        ...

    def before_last(self) -> None:
        """Returns once the last may leave, without which no replica finishes the step.

        Where there is no other replica, once the step may be finished.
        """
        ...


class GradientSync:
    """Sums gradients, and what else all replicas of a stage have to agree on.

    Args:
        parts: the parameters of each chunk of the model on this rank, in an order that every
            replica has.
        num_extra: numbers of `extra`, float64, summed along with the gradients.
        groups: made for `scheme`.
        scheme: how to sum; "auto": the fastest, by measurement.
        num_shards: leaders per node where the scheme is sharded.
        device: where the stage lives.
        bucket_bytes: size at which a bucket is closed.
        exchange_dtype: dtype of float32 gradients between nodes.
        timeout_s: longest wait for the sums, seconds.
        meters: gets the time of each leg.
        situation: what a measured choice holds for, in words; the same on all replicas.
        known: the choice of an earlier start, for "auto"; only the first replica's counts.
    """

    def __init__(
        self,
        parts: Sequence[Sequence[Parameter]],
        *,
        num_extra: int,
        groups: Groups,
        scheme: SchemeChoice,
        num_shards: int,
        device: torch.device,
        bucket_bytes: int,
        exchange_dtype: torch.dtype = torch.float32,
        timeout_s: float,
        meters: Meters,
        situation: str = "",
        known: Choice | None = None,
    ) -> None:
        self._groups = groups
        self._meters = meters
        trained = [[p for p in part if p.requires_grad] for part in parts]
        self._parameters = [p for part in trained for p in part]
        self.choice: Choice | None = None
        is_alone = not any((groups.collect, groups.exchange, groups.flat))
        cut = [[]] if is_alone else cut_into_buckets(trained, bucket_bytes)
        self._arena = _shared_arena(groups, device, cut, num_extra)
        shared = None if self._arena is None else self._arena.memory.own
        self._registered = None if shared is None else door.register(shared, device)
        allocate = _allocate(self._arena, groups, device)
        self._gate: Gate | None = None
        self._scratch = [Bucket([], length, device, allocate) for length in _SCRATCH_NUMBERS]
        self._first = Bucket(cut[0], num_extra, device, allocate)
        self._buckets = [self._first, *(Bucket(part, 0, device, allocate) for part in cut[1:])]
        self.extra = self._first.extra
        self._used: set[Parameter] = set()
        self._final: set[Parameter] = set()
        self._armed: set[int] = set()
        self._next = 0
        self._part_of = {p: number for number, part in enumerate(trained) for p in part}
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        all_groups = (groups.collect, groups.flat, *groups.exchange)
        compress_to = None if exchange_dtype == torch.float32 else exchange_dtype

        def start(scheme: SchemeName) -> Chain | None:
            actions = scheme_actions(scheme, groups, self._arena, num_shards, compress_to)
            if not actions:
                return None
            is_nccl = any(g is not None and g.backend == "nccl" for g in all_groups)
            return Chain(actions, device, timeout_s, meters, in_one_thread=is_nccl)

        self._chain: Chain | None = None
        self._situation = situation
        self._scheme = scheme
        if scheme != "auto":
            self._chain = start(scheme)
        elif groups.flat is not None:
            for bucket in self._buckets:
                bucket.clear()
            calibration = Calibration(groups.flat, self._buckets, situation)
            candidates = [s for s in SCHEMES if s != "sharded" or num_shards > 1]
            self.choice = calibration.choose(candidates, start, known)
            self._chain = start(self.choice.scheme)
            self._scheme = self.choice.scheme
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._accumulated)

    def hold(self, gate: Gate) -> None:
        """From the next step on, buckets leave only as `gate` lets them."""
        self._gate = gate

    @property
    def rounds(self) -> bool:
        """Whether this rank rounds what it sends to other nodes."""
        return any(rounding.rounds for rounding in self._roundings.values())

    @property
    def feedback_situation(self) -> str:
        """What `feedback` belongs to, short: it is of no use to any other rank or layout."""
        position = [(group.index, group.size) for group in self._groups.exchange]
        shard = None if self._groups.collect is None else self._groups.collect.index
        sizes = [bucket.num_bytes for bucket in self._buckets]
        text = f"{self._situation}, {self._scheme}, {position}, {shard}, {sizes}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def feedback(self) -> dict[str, Tensor]:
        """What rounding has left to be made up for in the next step, by leg and bucket.

        Read it between `finish` and the next step's first bucket.
        """
        return {
            f"{phase}.{number}": remainder
            for phase, rounding in self._roundings.items()
            for number, bucket in enumerate(self._buckets)
            if (remainder := rounding.remainder(bucket)) is not None
        }

    def load_feedback(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `feedback` gave in the same `feedback_situation`."""
        for phase, rounding in self._roundings.items():
            for number, bucket in enumerate(self._buckets):
                kept = tensors.get(f"{phase}.{number}")
                if kept is not None:
                    rounding.take_up(bucket, kept.to(bucket.wire.device))

    def drop_feedback(self) -> None:
        """Makes up for nothing that rounding has left; between `finish` and the next step.

        What is no number would stay in it for good; and what is left of one step is of no use to
        one whose gradients are scaled otherwise.
        """
        for rounding in self._roundings.values():
            rounding.drop()

    @property
    def _roundings(self) -> Mapping[Phase, Rounding]:
        return {} if self._chain is None else self._chain.roundings

    def start_step(self) -> None:
        """Clears gradients and extra; every gradient is a view of its bucket from here on."""
        self._used.clear()
        self._final.clear()
        self._armed.clear()
        self._next = 0
        if self._chain is None:
            self._first.extra.zero_()
            for parameter in self._parameters:
                parameter.grad = None
            return
        for bucket in self._buckets:
            bucket.clear()

    def arm(self, part: int) -> None:
        """Says that the next backward of a part is its last: its gradients are final.

        By then `extra` is complete.
        """
        self._armed.add(part)
        if self._chain is not None:
            self._launch_ready()

    def finish(self) -> None:
        """Waits for all sums; a parameter that nobody used has no gradient, as without bundles.

        Collective: all replicas of the stage.

        Raises:
            RuntimeError: another rank did not answer in time, or died.
        """
        if self._chain is None:
            if self._gate is not None:
                self._gate.before_first()
                self._gate.before_last()
            for parameter in self._parameters:
                # With other replicas it is summed into a dense bucket; one alone is no exception.
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
            return
        self._armed.clear()
        for number in range(self._next, len(self._buckets)):
            self._launch(number)
        with self._meters.phase("sync_wait"):
            num_users = torch.cat([self._chain.take().open() for _ in self._buckets]).tolist()
        parameters = (p for bucket in self._buckets for p in bucket.parameters)
        for parameter, users in zip(parameters, num_users, strict=True):
            if not users:
                parameter.grad = None

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of float64 `values` over the replicas of the stage.

        Collective: all replicas of the stage, outside a step.
        """
        if self._chain is None:
            return values
        few, many = self._scratch
        bucket = few if values.numel() <= few.extra.numel() else many
        parts = values.split(bucket.extra.numel())
        return torch.cat([self._summed(self._chain, bucket, part) for part in parts])

    def _summed(self, chain: Chain, bucket: Bucket, values: Tensor) -> Tensor:
        bucket.extra[: values.numel()] = values
        bucket.close(())
        chain.launch(bucket)
        chain.take().open()
        sums: Tensor = bucket.extra[: values.numel()].clone()
        return sums

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes `tensors` those of the first replica, in place.

        Collective: all replicas of the stage, outside a step.
        """
        hybrid = (*self._groups.exchange[:1], self._groups.distribute)
        groups = [g for g in (hybrid if self._groups.flat is None else (self._groups.flat,)) if g]
        if not groups:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            alike = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in alike])
            wire = flat if groups[0].backend == "nccl" else flat.cpu()
            for piece in wire.view(torch.uint8).split(_COPY_BYTES):
                for group in groups:
                    group.broadcast(piece).wait()
            for tensor, part in zip(alike, wire.split([t.numel() for t in alike]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def close(self) -> None:
        """Ends the threads."""
        if self._chain is not None:
            self._chain.close()
        if self._registered is not None:
            self._registered.end()

    def _accumulated(self, parameter: Tensor) -> None:
        """Notes that autograd has added to a gradient.

        Raises:
            ConfigError: it had its last addition already.
        """
        assert isinstance(parameter, Parameter)
        self._used.add(parameter)
        if self._chain is None or self._part_of[parameter] not in self._armed:
            return
        if parameter in self._final:
            raise ConfigError(
                "a parameter got its gradient twice in one backward, after its sum had begun; "
                "activation checkpointing needs use_reentrant=False here"
            )
        self._final.add(parameter)
        self._bucket_of[parameter].pending -= 1
        self._launch_ready()

    def _launch_ready(self) -> None:
        while self._next < len(self._buckets) and self._is_final(self._buckets[self._next]):
            self._launch(self._next)
            self._next += 1

    def _is_final(self, bucket: Bucket) -> bool:
        # The first may be without parameters: its numbers are complete once anything is armed.
        return bool(self._armed) and bucket.pending == 0

    def _launch(self, number: int) -> None:
        assert self._chain is not None
        bucket = self._buckets[number]
        if self._gate is not None and number == 0:
            self._gate.before_first()
        if self._gate is not None and number == len(self._buckets) - 1:
            self._gate.before_last()
        bucket.close(self._used)
        self._chain.launch(bucket)


def _shared_arena(
    groups: Groups, device: torch.device, cut: Sequence[Sequence[Parameter]], num_extra: int
) -> NodeArena | None:
    """Memory that the ranks of the node share; None where there is none, or no use for it."""
    group = groups.collect
    if group is None or group.backend == "nccl":
        return None
    sizes = [aligned(8 * length) for length in _SCRATCH_NUMBERS]
    sizes += [aligned(8 * (num_extra + _length(cut[0])))]
    sizes += [aligned(_length(part) * part[0].element_size()) for part in cut[1:]]
    memory = NodeMemory.connect(group, 2 * sum(sizes), num_channels=NUM_CHANNELS)
    if memory is None:
        return None
    return NodeArena(memory, sum(sizes))


def _length(parameters: Sequence[Parameter]) -> int:
    return sum(p.numel() for p in parameters) + len(parameters)


def _allocate(arena: NodeArena | None, groups: Groups, device: torch.device) -> Allocate | None:
    """Where the buckets' wires lie; None: where the gradients are."""
    if arena is not None:
        return arena.allocate
    all_groups = (groups.collect, groups.flat, *groups.exchange)
    uses_gloo = any(g is not None and g.backend == "gloo" for g in all_groups)
    if door.is_gpu(device) and uses_gloo:
        return _pinned
    return None


def _pinned(length: int, dtype: torch.dtype) -> Tensor:
    return door.pinned((length,), dtype).zero_()
