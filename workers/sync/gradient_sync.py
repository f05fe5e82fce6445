"""The gradients of a stage, summed over all its replicas once a step.

    last backward  |== b0 ==|== b1 ==|== b2 ==|      [1] armed  [2] a bucket leaves when it is final
    collect           |b0|b1|b2|                     [3] inside the node,
    exchange             |--b0--|--b1--|--b2--|          between the nodes,
    distribute                  |b0|    |b1|  |b2|       back inside the node
    finish                                    |----| [4] waits for all sums
    read                                           | [5] small ones come to the processor

Buckets are the same on every replica and go in one order. The first carries the small sums of the
step, `extra`, too.

A step may also end with the first bucket, and the next one begin; see `Coming`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.workers.device import numbers
from bundlerun.workers.rank.groups import Legs
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.sync.bucket import Bucket, cut_into_buckets
from bundlerun.workers.sync.bucket_memory import BucketMemory
from bundlerun.workers.sync.calibrate import Calibration, Choice
from bundlerun.workers.sync.coming import Coming
from bundlerun.workers.sync.frozen import Frozen
from bundlerun.workers.sync.leaving import leaving
from bundlerun.workers.sync.legs import Chain
from bundlerun.workers.sync.scheme import Scheme
from bundlerun.workers.sync.schemes import Ways
from bundlerun.workers.sync.short import low_rank
from bundlerun.workers.sync.short.kept_back import KeptBack
from bundlerun.workers.sync.spread import copy_from_first


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncSettings:
    """What holds for every way to sum a stage.

    Args:
        bucket_bytes: size at which a bucket is closed.
        form: of float32 gradients between nodes.
        timeout_s: longest wait for the sums, seconds.
        situation: what a measured choice holds for, in words; the same on all replicas.
        known: the choice of an earlier start, used where the way is to be measured; only the
            first replica's counts.
    """

    bucket_bytes: int
    form: ExchangeForm = EXACT
    timeout_s: float
    situation: str = ""
    known: Choice | None = None


class GradientSync:
    """Sums gradients, and what else all replicas of a stage have to agree on.

    Args:
        chunks: the parameters of each chunk of the model on this rank, in an order that every
            replica has.
        num_extra: numbers of `extra`, float64, summed along with the gradients.
        ways: how to sum; if there are several, the fastest is found by measuring.
        groups: made for `ways`.
        device: where the stage lives.
        settings: what holds for every way.
        meters: gets the time of each leg.
    """

    def __init__(
        self,
        chunks: Sequence[Sequence[Parameter]],
        *,
        num_extra: int,
        ways: Ways,
        groups: Legs,
        device: torch.device,
        settings: SyncSettings,
        meters: Meters,
    ) -> None:
        self._groups = groups
        # NCCL wants one order of all operations on all ranks, which several threads do not keep.
        self._is_serial = ways.is_serial
        self._meters = meters
        self._settings = settings
        self._gate: Gate | None = None
        trained = [[p for p in chunk if p.requires_grad] for chunk in chunks]
        self._frozen = Frozen(p for chunk in chunks for p in chunk)
        # No groups: the only replica has nothing to send, but `extra` is still read from a bucket.
        cut = cut_into_buckets(trained, settings.bucket_bytes) if groups else [[]]
        mates = ways.node(groups)
        self._memory = BucketMemory(
            cut,
            num_extra=num_extra,
            device=device,
            groups=groups,
            mates=None if mates is None else groups[mates],
            num_parts=ways.num_parts,
            # Next to gradients the counts would have their step, and be rounded.
            has_own_counts=not settings.form.is_exact and settings.form.dtype != "bfloat16",
        )
        self._buckets = self._memory.buckets
        self.extra = self._buckets[0].extra
        # Of the step under way: who got a gradient, whose is final, which chunks have their last
        # backward, and the next bucket to leave.
        self._is_exact = False
        self._used: set[Parameter] = set()
        self._num_replicas = len(ways.replicas.ranks)
        # Whether `unused` may be other than zeros, as it is left by the step before.
        self._had_unused = True
        self._final: set[Parameter] = set()
        self._armed: set[int] = set()
        self._next = 0
        # In which buckets leave, and how many of them as soon as they are final.
        self._order = list(range(len(self._buckets)))
        self._num_early = len(self._order)
        self.headway = len(self._order)
        """Buckets whose sums were there when the last backward was over; of the newest step. Before
        the first one nothing is known of the wire."""
        self._parameters = [p for chunk in trained for p in chunk]
        self._chunk_of = {p: number for number, chunk in enumerate(trained) for p in chunk}
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._unused = self._buckets[-1].unused
        # A measurement sums the buckets themselves, so they have to be there.
        start = partial(self._start, device)
        self.choice = self._measured(ways, start)
        self._scheme = ways.chosen(self.choice)
        self._chain = start(self._scheme)
        self.coming = Coming(self._chain, self._buckets[-1], self._read_unused, meters)
        """The sums of the step that is sent."""
        self.kept_back = KeptBack(
            self._parameters,
            self._buckets,
            {} if self._chain is None else self._chain.roundings,
            self._scheme.from_first(groups),
        )
        # Without other replicas nobody asks which gradient is final.
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._accumulated)
            for parameter in (self._parameters if self._chain is not None else ())
        ]

    def _start(self, device: torch.device, scheme: Scheme) -> Chain | None:
        """The legs of a scheme; None where this is the only replica."""
        form, timeout_s = self._settings.form, self._settings.timeout_s
        actions = scheme.actions(self._groups, self._memory.arena, form)
        if not actions:
            return None
        return Chain(actions, device, timeout_s, self._meters, in_one_thread=self._is_serial)

    def _measured(self, ways: Ways, start: Callable[[Scheme], Chain | None]) -> Choice | None:
        """The fastest way; None where there is no other, or no other replica."""
        replicas = self._groups.get(ways.replicas)
        if ways.is_settled or replicas is None:
            return None
        calibration = Calibration(replicas, self._buckets, self._settings.situation)
        return calibration.choose(ways.candidates, start, self._settings.known)

    def hold(self, gate: Gate) -> None:
        """From the next step on, `gate` decides when buckets may leave."""
        self._gate = gate

    @property
    def feedback_situation(self) -> str:
        """A short text for what leg and bucket of which rank and layout `kept_back` is of."""
        place = [(group.index, group.size) for group in self._groups.values()]
        sizes = [bucket.num_bytes for bucket in self._buckets]
        text = f"{self._settings.situation}, {self._scheme.name}, {place}, {sizes}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def has_matrices(self, rank: int) -> bool:
        """Whether matrices of that rank would be shorter than any gradient is."""
        return any(low_rank.has_matrices(bucket, rank) for bucket in self._buckets)

    def start_step(self, *, is_exact: bool = False) -> None:
        """Clears extra, and gradients but for those that the optimizer is still to have.

        Args:
            is_exact: whether its sums travel as they are between nodes, with all that was kept
                back before; the same on all replicas.
        """
        self._is_exact = is_exact
        self._used.clear()
        self._final.clear()
        self._armed.clear()
        self._next = 0
        self.extra.zero_()
        for parameter in self._parameters:
            if parameter not in self.coming.awaited:
                parameter.grad = None
        for bucket in self._buckets:
            bucket.begin()

    def arm(self, own_chunk: int) -> None:
        """Says that the next backward of a chunk is its last: its gradients are final.

        `extra` has to be complete by then.

        Args:
            own_chunk: counted among the chunks of this rank.
        """
        # [1]
        self._armed.add(own_chunk)
        if self._chain is not None:
            self._launch_ready()

    def finish(self) -> None:
        """Waits for all sums; on a GPU they may still be under way there.

        Collective: all replicas of the stage. `read` has to follow.

        Raises:
            RuntimeError: another rank did not answer in time, or died.
            ConfigError: a parameter is trained that was not when this began.
        """
        self.launch()
        self.take()

    def launch(self) -> None:
        """The first half of `finish`: sends what is left of this rank's part."""
        self._frozen.check()
        if self._chain is None:
            self._pay(self._parameters)
            if self._gate is not None:
                self._gate.before_first()
                self._gate.before_last()
            for parameter in self._parameters:
                # With other replicas it is summed into a dense bucket; one alone is no exception.
                if (gradient := parameter.grad) is None:
                    continue
                if gradient.is_sparse:
                    parameter.grad = gradient.to_dense()
                elif gradient.is_conj():  # not yet worked out, and no clipping takes it so
                    parameter.grad = gradient.resolve_conj()
            return
        # No hook launches any more. Buckets with unused parameters are left: every replica launches
        # them all the same (I6).
        self._armed.clear()
        self.headway = self._chain.num_waiting
        for place in range(self._next, len(self._buckets)):
            self._launch(place)
        self.coming.sent(len(self._buckets))

    def take(self) -> None:
        """The second half of `finish`: waits for the sums."""
        # [4]
        self.coming.take_all()

    def take_small(self) -> set[Parameter]:
        """In place of `take`: waits for `extra` only, see `Coming.take_small`.

        Returns:
            The parameters whose sums are to come.
        """
        self.coming.take_small(self._parameters, self._used)
        return set(self._parameters)

    @property
    def has_replicas(self) -> bool:
        """Whether there are others to sum with."""
        return self._chain is not None

    def lead(self, headway: float) -> None:
        """Says how far replicas get, and so in which order buckets leave from the next step on.

        Of those that would only wait for the wire, what the next forward needs first leaves first.

        Args:
            headway: summed over the replicas; the same on all.
        """
        self._order, self._num_early = leaving(len(self._buckets), headway / self._num_replicas)

    def read(self, *vectors: Tensor) -> list[list[float]]:
        """The numbers of flat tensors of the device; see `start_read`."""
        return self.start_read(*vectors)()

    def start_read(self, *vectors: Tensor) -> Callable[[], list[list[float]]]:
        """Begins to copy the numbers of flat tensors of the device; gives what waits for them.

        That is the one wait for the device in a step. A parameter that nobody used has no gradient
        from there on, as without bundles.
        """
        # [5]
        if self._chain is None:
            return numbers.start_read(vectors)
        reading = numbers.start_read([*vectors, self._unused])
        return partial(self._read, reading)

    def _read(self, reading: Callable[[], list[list[float]]]) -> list[list[float]]:
        with self._meters.phase("sync_wait"):
            *found, counts = reading()
        self._clear_unused(counts)
        return found

    def _read_unused(self) -> None:
        self._clear_unused(self._unused.tolist())

    def _clear_unused(self, counts: Sequence[float]) -> None:
        self._had_unused = any(counts)
        if self._had_unused:
            for parameter, count in zip(self._bucket_of, counts, strict=True):
                if count == self._num_replicas:
                    parameter.grad = None

    @property
    def is_all_used(self) -> bool:
        """Whether it is known without a look at other replicas which parameters have a gradient."""
        return self._chain is None or len(self._used) == len(self._parameters)

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of float64 `values`, of shape (n,), over the replicas of the stage.

        Collective: all replicas of the stage, outside a step.
        """
        if self._chain is None:
            return values
        # What has left before comes before.
        self.coming.let_pass()
        bucket = self._memory.scratch(values.numel())
        pieces = values.split(bucket.extra.numel())
        return torch.cat([self._summed(self._chain, bucket, piece) for piece in pieces])

    def _summed(self, chain: Chain, bucket: Bucket, values: Tensor) -> Tensor:
        bucket.extra[: values.numel()] = values
        bucket.close()
        chain.launch(bucket)
        with self._meters.phase("sync_wait"):
            chain.take().wait_ready()
        sums: Tensor = bucket.extra[: values.numel()].clone()
        return sums

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes `tensors` those of the first replica, in place.

        Collective: all replicas of the stage, outside a step.
        """
        copy_from_first(self._scheme.from_first(self._groups), tensors)

    def close(self) -> None:
        """Ends the threads, and leaves the parameters to who sums them next."""
        for hook in self._hooks:
            hook.remove()
        if self._chain is not None:
            self._chain.close()
        self._memory.close()

    def _accumulated(self, parameter: Tensor) -> None:
        """Notes that autograd has added to a gradient.

        Raises:
            ConfigError: it had its last addition already.
        """
        assert isinstance(parameter, Parameter)
        bucket = self._bucket_of[parameter]
        if parameter not in self._used:
            self._used.add(parameter)
            bucket.note_first()
        if self._chunk_of[parameter] not in self._armed:
            return
        # Its bucket may have left: an addition now would be lost, and only on this replica.
        if parameter in self._final:
            raise ConfigError(
                "a parameter got its gradient twice in one backward, after its sum had begun; "
                "activation checkpointing needs use_reentrant=False here"
            )
        self._final.add(parameter)
        bucket.pending -= 1
        self._launch_ready()

    def _launch_ready(self) -> None:
        # [2] In order, though a later one may be final first: all replicas send in one order (I6).
        while self._next < self._num_early and self._is_final(self._order[self._next]):
            self._launch(self._next)
            self._next += 1

    def _is_final(self, number: int) -> bool:
        # The first may be without parameters: its numbers are complete once anything is armed.
        return bool(self._armed) and self._buckets[number].pending == 0

    def _launch(self, place: int) -> None:
        assert self._chain is not None
        bucket = self._buckets[self._order[place]]
        if self._gate is not None and place == 0:
            self._gate.before_first()
        # Without it no replica ends the step, so it waits for the snapshots of the bundle (I8).
        if self._gate is not None and place == len(self._order) - 1:
            self._gate.before_last()
        # [3]
        if bucket is self._buckets[-1]:
            # The last backward is over, or all others have left as they were final: what has a
            # gradient is known, once all that is owed is paid.
            self._pay(self._parameters)
            self._write_unused()
        else:
            self._pay(bucket.parameters)
        bucket.is_exact = self._is_exact
        bucket.close()
        self._chain.launch(bucket)

    def _pay(self, parameters: Sequence[Parameter]) -> None:
        self._used |= self.kept_back.debts.pay(parameters)

    def _write_unused(self) -> None:
        # A gradient of zeros would not tell "unused" from "used, and zero". Mostly these are zeros
        # in this step and in the one before, and nothing is written.
        flags = [float(p not in self._used) for p in self._bucket_of]
        if any(flags) or self._had_unused:
            numbers.write(self._unused, flags)
