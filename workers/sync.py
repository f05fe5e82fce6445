"""Sums the gradients of a stage over all its replicas: collect, exchange, distribute (I6).

    last backward  |== b0 ==|== b1 ==|== b2 ==|      a bucket leaves when its gradients are final
    collect           |b0|b1|b2|                     inside the node, to the local master
    exchange             |--b0--|--b1--|--b2--|      among the local masters of all nodes
    distribute                  |b0|    |b1|  |b2|   back inside the node

Buckets are the same on every replica and go in one order; each leg is one thread with one group,
so nothing can overtake. The last bucket, `extra`, carries the small sums of the step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor
from torch._C._distributed_c10d import Work
from torch.nn import Parameter

from launcher.errors import ConfigError
from workers.comm import Group
from workers.groups import Groups
from workers.meters import Meters, Phase


class Bucket:
    """Gradients that travel together, one flat tensor.

    Args:
        parameters: whose gradients; of one dtype and device.
        is_staged: whether the sum is taken in pinned CPU memory although the gradients are not.
    """

    def __init__(self, parameters: Sequence[Parameter], is_staged: bool) -> None:
        first = parameters[0]
        sizes = [p.numel() for p in parameters]
        self.parameters = list(parameters)
        self.flat = torch.zeros(sum(sizes), dtype=first.dtype, device=first.device)
        self.views = [
            part.view_as(p) for part, p in zip(self.flat.split(sizes), parameters, strict=True)
        ]
        self.pending = 0
        self._carry(is_staged)

    @classmethod
    def of_tensor(cls, flat: Tensor, is_staged: bool) -> Bucket:
        """A bucket that is just one flat tensor."""
        bucket = cls.__new__(cls)
        bucket.parameters, bucket.views, bucket.flat, bucket.pending = [], [], flat, 0
        bucket._carry(is_staged)
        return bucket

    def _carry(self, is_staged: bool) -> None:
        on_cuda = self.flat.device.type == "cuda"
        self.wire = (
            torch.empty_like(self.flat, device="cpu", pin_memory=True) if is_staged else self.flat
        )
        self._ready = torch.cuda.Event() if on_cuda else None

    def mark_ready(self) -> None:
        """What the current stream has done so far belongs to this bucket."""
        if self._ready is not None:
            self._ready.record()

    def wait_ready(self) -> None:
        """Lets the current stream wait for `mark_ready`."""
        if self._ready is not None:
            self._ready.wait()

    def load_wire(self) -> None:
        """Brings the gradients to where they are summed."""
        if self.wire is not self.flat:
            self.wire.copy_(self.flat, non_blocking=True)
            torch.cuda.current_stream(self.flat.device).synchronize()

    def unload_wire(self) -> None:
        """Brings the sums back."""
        if self.wire is not self.flat:
            self.flat.copy_(self.wire, non_blocking=True)


Boxes = queue.SimpleQueue["Bucket | Exception | None"]


class _Leg(threading.Thread):
    """One leg of the sync: takes buckets in order, passes each on when its sum has arrived."""

    def __init__(
        self, name: Phase, act: Callable[[Tensor], object], device: torch.device, meters: Meters
    ) -> None:
        super().__init__(name=f"sync-{name}", daemon=True)
        self.inbox: Boxes = queue.SimpleQueue()
        self.outbox: Boxes
        self.failures: Boxes
        self.is_first = self.is_last = False
        self._phase: Phase = name
        self._act = act
        self._meters = meters
        self._device = device

    def run(self) -> None:
        stream: AbstractContextManager[object] = nullcontext()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
            stream = torch.cuda.stream(torch.cuda.Stream(self._device))
        with stream:
            while isinstance(bucket := self.inbox.get(), Bucket):
                try:
                    with self._meters.phase(self._phase):
                        self._carry_out(bucket)
                except Exception as exc:  # handed to the thread that waits in finish()
                    self.failures.put(exc)
                    return
                self.outbox.put(bucket)

    def _carry_out(self, bucket: Bucket) -> None:
        bucket.wait_ready()
        if self.is_first:
            bucket.load_wire()
        self._act(bucket.wire)
        if self.is_last:
            bucket.unload_wire()
        bucket.mark_ready()


class GradientSync:
    """The gradients of one stage, summed over all its replicas once a step.

    Args:
        parameters: all parameters of the stage, in an order that every replica has.
        num_extra: numbers of `extra`, float64, summed along with the gradients.
        groups: the legs of this rank.
        device: where the stage lives.
        bucket_bytes: size at which a bucket is closed.
        timeout_s: longest wait for the sums, seconds.
        meters: gets the time of each leg.
    """

    def __init__(
        self,
        parameters: Sequence[Parameter],
        *,
        num_extra: int,
        groups: Groups,
        device: torch.device,
        bucket_bytes: int,
        timeout_s: float,
        meters: Meters,
    ) -> None:
        self._groups = groups
        self._meters = meters
        self._timeout_s = timeout_s
        self._parameters = [p for p in parameters if p.requires_grad]
        self._legs = self._start_legs(device)
        self._is_staged = device.type == "cuda" and any(
            g is not None and g.backend == "gloo" for g in (groups.collect, groups.exchange)
        )
        num_flags = len(self._parameters)
        sums = torch.zeros(num_extra + num_flags, dtype=torch.float64, device=device)
        self.extra, self._used_flags = sums.split([num_extra, num_flags])
        self._extra_bucket = Bucket.of_tensor(sums, self._is_staged)
        self._buckets = (
            [
                Bucket(part, self._is_staged)
                for part in cut_into_buckets(self._parameters, bucket_bytes)
            ]
            if self._legs
            else []
        )
        self._used: set[int] = set()
        self._final: set[int] = set()
        self._is_armed = False
        self._next = 0
        bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        for index, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(
                self._hook(index, bucket_of.get(parameter))
            )

    def start_step(self) -> None:
        """Clears gradients and extra; every gradient is a view of its bucket from here on."""
        self._extra_bucket.flat.zero_()
        self._used.clear()
        self._final.clear()
        self._is_armed = False
        self._next = 0
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.pending = len(bucket.parameters)
            for parameter, view in zip(bucket.parameters, bucket.views, strict=True):
                parameter.grad = view
        if not self._buckets:
            for parameter in self._parameters:
                parameter.grad = None

    def arm(self) -> None:
        """Says that the next backward is the last: its gradients are final."""
        self._is_armed = True

    def finish(self) -> None:
        """Waits for all sums; a parameter that nobody used has no gradient, as without bundles.

        Collective: all replicas of the stage.

        Raises:
            RuntimeError: another rank did not answer in time, or died.
        """
        if not self._legs:
            return
        self._is_armed = False
        self._used_flags[list(self._used)] = 1
        for bucket in self._buckets[self._next :]:
            self._launch(bucket)
        self._launch(self._extra_bucket)
        with self._meters.phase("sync_wait"):
            for _ in range(len(self._buckets) + 1):
                self._take().wait_ready()
        is_used = dict(zip(self._parameters, self._used_flags.tolist(), strict=True))
        for parameter in self._parameters:
            if not is_used[parameter]:
                parameter.grad = None

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of `values` over the replicas of the stage.

        Collective: all replicas of the stage, outside a step.
        """
        if not self._legs:
            return values
        bucket = Bucket.of_tensor(values.clone(), self._is_staged and values.is_cuda)
        self._launch(bucket)
        self._take().wait_ready()
        return bucket.flat

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes `tensors` those of the first replica, in place.

        Collective: all replicas of the stage, outside a step.
        """
        for tensor in tensors:
            for group in (self._groups.exchange, self._groups.distribute):
                if group is not None:
                    wire = tensor.to(tensor.device if group.backend == "nccl" else "cpu")
                    wire = wire.contiguous()
                    group.broadcast(wire).wait()
                    tensor.copy_(wire)

    def close(self) -> None:
        """Ends the threads."""
        for leg in self._legs:
            leg.inbox.put(None)

    def _hook(self, index: int, bucket: Bucket | None) -> Callable[[Tensor], None]:
        def is_final(_: Tensor) -> None:
            self._used.add(index)
            if self._is_armed and bucket is not None:
                if index in self._final:
                    raise ConfigError(
                        "a parameter got its gradient twice in one backward, after its sum had "
                        "begun; activation checkpointing needs use_reentrant=False here"
                    )
                self._final.add(index)
                bucket.pending -= 1
                self._launch_ready()

        return is_final

    def _launch_ready(self) -> None:
        while self._next < len(self._buckets) and self._buckets[self._next].pending == 0:
            self._launch(self._buckets[self._next])
            self._next += 1

    def _launch(self, bucket: Bucket) -> None:
        bucket.mark_ready()
        self._legs[0].inbox.put(bucket)

    def _take(self) -> Bucket:
        try:
            done = self._done.get(timeout=self._timeout_s * len(self._legs))
        except queue.Empty:
            raise RuntimeError(f"no sum within {self._timeout_s} s; a rank is gone") from None
        if isinstance(done, Exception):
            raise RuntimeError("the sync was cut off; another rank is gone") from done
        assert done is not None
        return done

    def _start_legs(self, device: torch.device) -> list[_Leg]:
        self._done: Boxes = queue.SimpleQueue()
        legs = [_Leg(name, act, device, self._meters) for name, act in _acts(self._groups)]
        for leg in legs:
            leg.outbox = leg.failures = self._done
        for leg, after in pairwise(legs):
            leg.outbox = after.inbox
        if legs:
            legs[0].is_first = legs[-1].is_last = True
        for leg in legs:
            leg.start()
        return legs


def _acts(groups: Groups) -> Iterator[tuple[Phase, Callable[[Tensor], object]]]:
    """The legs of one rank, in order."""

    def waited(
        operation: Callable[[Group, Tensor], Work], group: Group
    ) -> Callable[[Tensor], object]:
        return lambda tensor: operation(group, tensor).wait()

    if groups.collect is not None:
        yield "collect", waited(Group.reduce, groups.collect)
    if groups.exchange is not None:
        yield "exchange", waited(Group.all_reduce, groups.exchange)
    if groups.distribute is not None:
        yield "distribute", waited(Group.broadcast, groups.distribute)


def cut_into_buckets(parameters: Sequence[Parameter], bucket_bytes: int) -> list[list[Parameter]]:
    """Parameters in buckets of one dtype and about `bucket_bytes`, last parameters first.

    The last layers are the first to have their gradients.
    """
    buckets: list[list[Parameter]] = []
    filled = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        fits = buckets and filled + size <= bucket_bytes
        if fits and buckets[-1][0].dtype == parameter.dtype:
            buckets[-1].append(parameter)
            filled += size
        else:
            buckets.append([parameter])
            filled = size
    return buckets
