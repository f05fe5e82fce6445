"""Performs the schedule of one rank: its chunks of the model, its links, its receives ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bundlerun.launcher.choices import Precision, ScheduleChoice
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.schedule import Action, Order, Pass, Pipeline, last_backwards
from bundlerun.launcher.layout.topology import Link, LinkKind, Place, Topology
from bundlerun.splits.stage import Forward, chunk_forwards
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.nest import Form, built, form_of, leaves, mapped
from bundlerun.workers.pipeline.links import InLink, Kind, OutLink, specs_of
from bundlerun.workers.pipeline.loss import LossCheck, share_of
from bundlerun.workers.pipeline.split_backward import WeightPass, input_pass
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.step import StepShare, StepWork

Edge = tuple[LinkKind, int, int]
"""Kind and chunk of a link, and the replica at its other end."""


@dataclass(slots=True)
class _InFlight:
    """A micro-batch between the forward and the backward of a chunk."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def _nothing(_: object) -> None:
    pass


@dataclass(slots=True, kw_only=True)
class _Step:
    """One step under way; keys are (micro-batch, chunk of the rank)."""

    work: StepWork
    batches: Iterator[Batch]
    split: frozenset[tuple[int, int]] = frozenset()
    """Whose backward is in two passes."""
    outcome: StepShare = field(default_factory=StepShare)
    in_flight: dict[tuple[int, int], _InFlight] = field(default_factory=dict)
    half_done: dict[tuple[int, int], WeightPass] = field(default_factory=dict)


class Bundle:
    """One rank's part in its bundle.

    Args:
        topology: the layout of the round.
        place: this rank.
        stage: this rank's part of the model, on `device`.
        links: the communicator of each link of this rank.
        recipe: gives loss and metrics.
        device: where the stage lives.
        precision: "float32", "bfloat16" (autocast) or "float64".
        meters: gets the time of each phase.
        schedule: name of the schedule, or "auto".
        forwards: what each chunk of `stage` computes; nothing: what `stage` itself says.
    """

    def __init__(
        self,
        *,
        topology: Topology,
        place: Place,
        stage: nn.Module,
        links: dict[Link, Group],
        recipe: Recipe,
        device: torch.device,
        precision: Precision,
        meters: Meters,
        schedule: ScheduleChoice = "auto",
        forwards: Sequence[Forward] = (),
    ) -> None:
        self.stage = stage
        # Not what the stage says: a model's own train() may set anything.
        self._is_training = False
        self._loss_check: LossCheck | None = None
        self.pipeline = Pipeline.of(topology, schedule)
        self._forwards = forwards or chunk_forwards(stage, topology.chunks_per_stage)
        self._widths = topology.shape.widths
        self._chunks = topology.chunks
        self._last_chunk = topology.num_chunks - 1
        self._place = place
        self._recipe = recipe
        self._device = device
        self._precision = precision
        self._meters = meters
        self._in: dict[Edge, InLink] = {}
        self._out: dict[Edge, OutLink] = {}
        for link, group in links.items():
            told = link.kind is not LinkKind.GRADIENT
            if link.src == place.rank:
                peer = topology.places[link.dst].replica
                self._out[link.kind, link.chunk, peer] = OutLink(
                    group, tells_specs=told, max_ahead=self.pipeline.largest_group
                )
            else:
                peer = topology.places[link.src].replica
                self._in[link.kind, link.chunk, peer] = InLink(group, device, is_told_specs=told)

    def watch_losses(self, check: LossCheck) -> None:
        """From the next step on, `check` looks at what the last stage finds in training."""
        self._loss_check = check

    def train(
        self,
        work: StepWork,
        batches: Iterator[Batch],
        before_last_backward: Callable[[int], object] = _nothing,
        on_forwards_done: Callable[[StepShare], object] = _nothing,
    ) -> StepShare:
        """Runs forward and backward of one step; gradients are added to those there.

        Collective: every rank of the bundle.

        Args:
            work: this bundle's share of the step.
            batches: the batches of this rank's micro-batches in order; read on stage 0 only.
            before_last_backward: called with the number of each of the rank's chunks that has
                something to do, before its gradients become final.
            on_forwards_done: called once, before the former is, when the outcome is complete.
        """
        self._is_training = True
        self.stage.train()
        order = self.pipeline.order(self._place.stage, self._place.replica, len(work.sizes))
        split = frozenset(a.key for a in order if a.kind is Pass.WEIGHT)
        step = _Step(work=work, batches=batches, split=split)
        self._perform(step, order, before_last_backward, on_forwards_done)
        return step.outcome

    @torch.no_grad()
    def evaluate(self, work: StepWork, batches: Iterator[Batch]) -> StepShare:
        """Runs the forwards of one step in evaluation mode; arguments as for `train`."""
        self._is_training = False
        self.stage.eval()
        order = self.pipeline.forward_order(self._place.stage, self._place.replica, len(work.sizes))
        step = _Step(work=work, batches=batches)
        self._perform(step, order, _nothing, _nothing)
        with self._meters.phase("send"):
            for link in self._out.values():
                link.finish()
        return step.outcome

    def _perform(
        self,
        step: _Step,
        order: Order,
        before_last_backward: Callable[[int], object],
        on_forwards_done: Callable[[StepShare], object],
    ) -> None:
        self._expect(step.work, order)
        last = last_backwards(order)
        num_left = sum(action.kind is Pass.FORWARD for action in order)
        if not num_left:
            on_forwards_done(step.outcome)
        for index, action in enumerate(order):
            if index in last:
                before_last_backward(last[index])
            match action.kind:
                case Pass.FORWARD:
                    self._forward(step, action)
                    num_left -= 1
                    if not num_left:
                        on_forwards_done(step.outcome)
                case Pass.BACKWARD:
                    self._backward(step, action)
                case Pass.WEIGHT:
                    self._weight_pass(step, action)

    # --- links

    def _chunk(self, action: Action) -> int:
        """The chunk of the model that an action is about."""
        return self._chunks.number(self._place.stage, action.chunk)

    def _peer(self, chunk: int, j: int) -> int:
        return j % self._widths[self._chunks.stage_of(chunk)]

    def _source(self, kind: LinkKind, chunk: int, j: int) -> InLink:
        """The link that brings what `chunk` needs for micro-batch `j`."""
        if kind is LinkKind.TARGET:
            return self._in[kind, 0, self._peer(0, j)]
        sender = chunk - 1 if kind is LinkKind.ACTIVATION else chunk + 1
        return self._in[kind, sender, self._peer(sender, j)]

    def _kind(self, work: StepWork, j: int) -> Kind:
        return Kind(self._is_training, work.sizes[j])

    def _expect(self, work: StepWork, order: Order) -> None:
        """Announces to each incoming link what will come in this step, in order."""
        for action in order:
            chunk, j = self._chunk(action), action.microbatch
            is_last = chunk == self._last_chunk
            wanted: list[LinkKind] = []
            if action.kind is Pass.BACKWARD and not is_last:
                wanted = [LinkKind.GRADIENT]
            elif action.kind is Pass.FORWARD and chunk > 0:
                wanted = [LinkKind.ACTIVATION] + [LinkKind.TARGET] * is_last
            for kind in wanted:
                self._source(kind, chunk, j).expect([self._kind(work, j)])

    def _receive(self, kind: LinkKind, chunk: int, j: int) -> tuple[list[Tensor], Form]:
        with self._meters.phase("receive"):
            return self._source(kind, chunk, j).receive_formed()

    def _send(
        self,
        kind: LinkKind,
        chunk: int,
        to: int,
        work: StepWork,
        j: int,
        what: list[Tensor],
        form: Form = None,
    ) -> None:
        with self._meters.phase("send"):
            self._out[kind, chunk, self._peer(to, j)].send(self._kind(work, j), what, form)

    # --- the passes

    def _forward(self, step: _Step, action: Action) -> None:
        work, chunk, j = step.work, self._chunk(action), action.microbatch
        arguments, target = self._input(step, chunk, j)
        is_last = chunk == self._last_chunk
        with self._meters.phase("forward"), self._autocast():
            if self._is_training:
                # Dropout depends on these alone, not on the topology (I1).
                torch.manual_seed(mix_seed(work.seed, work.step, work.first + j, chunk))
            result = self._forwards[action.chunk](*arguments)
            outputs = [self._judge(step, j, result, target)] if is_last else _tensors(result)
        if not is_last:
            if self._is_training:
                self._learn_gradients(work, chunk, j, outputs)
            form = _form_of(_arguments(result))
            self._send(LinkKind.ACTIVATION, chunk, chunk + 1, work, j, outputs, form)
        if self._is_training:
            step.in_flight[action.key] = _InFlight(_tensors(arguments), outputs)

    def _learn_gradients(self, work: StepWork, chunk: int, j: int, outputs: list[Tensor]) -> None:
        specs = [s._replace(requires_grad=False) for s in specs_of(outputs) if s.requires_grad]
        self._source(LinkKind.GRADIENT, chunk, j).learn(self._kind(work, j), tuple(specs))

    def _input(self, step: _Step, chunk: int, j: int) -> tuple[tuple[Any, ...], object]:
        """What a chunk is called with, and for the last one the target."""
        if chunk > 0:
            tensors, form = self._receive(LinkKind.ACTIVATION, chunk, j)
            arguments: tuple[Any, ...] = built(form, iter(tensors))
            if chunk < self._last_chunk:
                return arguments, None
            tensors, form = self._receive(LinkKind.TARGET, chunk, j)
            return arguments, built(form, map(self._placed, tensors))
        with self._meters.phase("data"):
            batch = next(step.batches)
            arguments = mapped(self._placed, batch.inputs)
        step.outcome.num_unreadable += batch.num_unreadable
        target = batch.target
        if self._last_chunk == 0:
            return arguments, mapped(self._placed, target)
        tensors, form = _tensors(target), _form_of(target)
        self._send(LinkKind.TARGET, 0, self._last_chunk, step.work, j, tensors, form)
        return arguments, None

    def _placed(self, tensor: Tensor) -> Tensor:
        is_wide = self._precision == "float64" and tensor.is_floating_point()
        dtype = torch.float64 if is_wide else tensor.dtype
        return tensor.to(self._device, dtype, non_blocking=True)

    def _judge(self, step: _Step, j: int, result: object, target: object) -> Tensor:
        """One micro-batch's share of the loss of the step."""
        size = step.work.sizes[j]
        found = self._recipe.loss(result, target)
        share = share_of(found, size, step.work.num_samples)
        with torch.no_grad():
            step.outcome.add(share, self._recipe.metrics(result, target), size)
        if self._loss_check is not None and self._is_training:
            self._loss_check.look(found, result, target, size)
        return share.loss

    def _backward(self, step: _Step, action: Action) -> None:
        chunk, j = self._chunk(action), action.microbatch
        flight = step.in_flight.pop(action.key)
        is_last = chunk == self._last_chunk
        gradients = None if is_last else self._receive(LinkKind.GRADIENT, chunk, j)[0]
        outputs = [t for t in flight.outputs if t.requires_grad]
        inputs = [t for t in flight.inputs if t.requires_grad]
        with self._meters.phase("backward"):
            if action.key in step.split and outputs and inputs:
                found, step.half_done[action.key] = input_pass(outputs, gradients, inputs)
            else:
                if outputs:
                    torch.autograd.backward(outputs, gradients)
                found = [t.grad for t in inputs]
        if chunk > 0:
            back = [
                torch.zeros_like(t) if g is None else g for t, g in zip(inputs, found, strict=True)
            ]
            self._send(LinkKind.GRADIENT, chunk, chunk - 1, step.work, j, back)

    def _weight_pass(self, step: _Step, action: Action) -> None:
        rest = step.half_done.pop(action.key, None)
        if rest is not None:
            with self._meters.phase("backward"):
                rest.run()

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()


def _arguments(result: object) -> tuple[object, ...]:
    """What the next chunk is called with: each item of a tuple or list is one argument."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _tensors(value: object) -> list[Tensor]:
    """The tensors in what a chunk hands on, in order."""
    return [leaf.value for leaf in leaves(value) if isinstance(leaf.value, Tensor)]


def _form_of(value: object) -> Form:
    try:
        return form_of(value, lambda item: isinstance(item, Tensor))
    except TypeError as exc:
        raise ConfigError(
            f"what a stage hands on cannot be sent: {exc}, neither a tensor nor a plain number; "
            "let the model make it where it is used, or use --shape 1"
        ) from exc
