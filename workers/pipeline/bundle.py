"""Performs the schedule of one rank: its chunks of the model, its links, its receives ahead.

forward    [1] inputs come   [2] compute   [3] outputs go   [4] the graph is kept
backward   [5] gradients of the outputs come   [6] compute   [7] gradients of the inputs go

A graph is kept by its ends: the inputs, and for each output the place in the graph where its
gradient is put in. The outputs themselves are let go once they are sent. So their memory is free
until the backward, unless the graph has saved them for an operation of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from bundlerun.launcher.layout.schedule import Action, Order, Pass, Pipeline, last_backwards
from bundlerun.launcher.layout.topology import LinkKind
from bundlerun.splits.stage import Forward
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.pipeline.ahead import Ahead
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.links import Kind
from bundlerun.workers.pipeline.loss import LossCheck, share_of
from bundlerun.workers.pipeline.split_backward import WeightPass, input_pass
from bundlerun.workers.pipeline.wires import Goods, Wires
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import Recipe, model_inputs, shapes_vary
from bundlerun.workers.step import StepShare, StepWork
from bundlerun.workers.values.module_tensors import copied_buffers, tensor_places
from bundlerun.workers.values.nest import built, form_sent, leaf_values, mapped
from bundlerun.workers.values.strides import with_strides


@dataclass(slots=True)
class _InFlight:
    """A micro-batch between the forward and the backward of a chunk: the ends of its graph."""

    inputs: list[Tensor]
    """Those that require grad."""
    edges: list[GradientEdge]
    """Where the gradients of the outputs are put in, for those that require grad."""
    gradients: list[Tensor] | None
    """Of the loss, which nobody sends; None: they are received."""
    loss: Tensor | None = None
    """A loss that needs neither: its backward is in one pass."""


def _nothing(_: object) -> None:
    pass


def _no_more() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a rank does in a step, and what follows from it."""

    order: Order
    split: frozenset[tuple[int, int]]
    """Whose backward is in two passes: micro-batch, chunk of the rank."""
    last: Mapping[int, int]
    """Where the gradients of a chunk become final: the chunk by the index of its last backward."""
    num_forwards: int

    @classmethod
    def of(cls, order: Order) -> _Plan:
        """That of an order."""
        return cls(
            order=order,
            split=frozenset(a.key for a in order if a.kind is Pass.WEIGHT),
            last=last_backwards(order),
            num_forwards=sum(action.kind is Pass.FORWARD for action in order),
        )


@dataclass(slots=True, kw_only=True)
class _Step:
    """One step under way; keys are (micro-batch, chunk of the rank)."""

    work: StepWork
    batches: Ahead
    share: StepShare
    split: frozenset[tuple[int, int]] = frozenset()
    """Whose backward is in two passes."""
    failure: Exception | None = None
    """What went wrong in its first forward, where that was begun ahead."""
    in_flight: dict[tuple[int, int], _InFlight] = field(default_factory=dict)
    half_done: dict[tuple[int, int], WeightPass] = field(default_factory=dict)


class Bundle:
    """One rank's part in its bundle.

    Args:
        wires: its links.
        pipeline: the order of what it does.
        stage: this rank's part of the model, on the device.
        forwards: what each chunk of `stage` computes.
        recipe: gives loss and metrics.
        arithmetic: device and precision.
        meters: gets the time of each phase.
    """

    def __init__(
        self,
        *,
        wires: Wires,
        pipeline: Pipeline,
        stage: nn.Module,
        forwards: Sequence[Forward],
        recipe: Recipe,
        arithmetic: Arithmetic,
        meters: Meters,
    ) -> None:
        self.stage = stage
        # Of each mode, as a validation may come between two steps of an epoch.
        self._ahead: dict[bool, Ahead] = {}
        # Not what the stage says: a model's own train() may set anything.
        self._is_training = False
        self._loss_check: LossCheck | None = None
        self.pipeline = pipeline
        self._wires = wires
        self._place = wires.place
        self._places = tensor_places(stage)
        self._last_chunk = wires.last_chunk
        self._forwards = forwards
        self._recipe = recipe
        self._shapes_vary = shapes_vary(recipe)
        self._arithmetic = arithmetic
        self._meters = meters
        self._plans: dict[int, _Plan] = {}
        self._begun: _Step | None = None

    def watch_losses(self, check: LossCheck) -> None:
        """From the next step on, `check` looks at what the last stage finds in training."""
        self._loss_check = check

    def can_begin(self, work: StepWork, batches: Iterator[Batch]) -> bool:
        """Whether `begin` needs nobody else: neither another stage nor a loader that is late."""
        return self._last_chunk == 0 and bool(work.sizes) and self._reader(batches).is_ahead

    def begin(self, work: StepWork, batches: Iterator[Batch], share: StepShare) -> None:
        """Does the first forward of the step that `train` is called for next.

        What goes wrong in it is raised there: by then the step before is settled.
        """
        step = self._begun = self._new(work, batches, share)
        try:
            self._forward(step, self._plan(len(work.sizes)).order[0])
        except Exception as exc:
            step.failure = exc

    def _new(self, work: StepWork, batches: Iterator[Batch], share: StepShare) -> _Step:
        split = self._plan(len(work.sizes)).split
        return _Step(work=work, batches=self._reader(batches), share=share, split=split)

    def train(
        self,
        work: StepWork,
        batches: Iterator[Batch],
        share: StepShare,
        before_last_backward: Callable[[int], object] = _nothing,
        on_forwards_done: Callable[[], object] = _no_more,
    ) -> None:
        """Runs forward and backward of one step; gradients are added to those there.

        Collective: every rank of the bundle.

        Args:
            work: this bundle's share of the step.
            batches: the batches of this rank's micro-batches in order; read on stage 0 only.
            share: gets the result.
            before_last_backward: called before the last backward of each of the rank's chunks
                that has work, with the chunk's number: after it, its gradients are final.
            on_forwards_done: called once, before the first `before_last_backward`, when the
                share is complete.
        """
        # Once, not step by step: to visit all modules takes as long as a small one.
        if not self._is_training:
            self._is_training = True
            self.stage.train()
        step, self._begun = self._begun or self._new(work, batches, share), None
        if step.failure is not None:
            raise step.failure
        plan = self._plan(len(work.sizes))
        self._perform(step, plan, before_last_backward, on_forwards_done)

    @torch.no_grad()
    def evaluate(self, work: StepWork, batches: Iterator[Batch], share: StepShare) -> None:
        """Runs the forwards of one step in evaluation mode; arguments as for `train`.

        Collective: every rank of the bundle.
        """
        self._is_training = False
        self.stage.eval()
        order = self.pipeline.forward_order(self._place.stage, self._place.replica, len(work.sizes))
        step = _Step(work=work, batches=self._reader(batches), share=share)
        self._perform(step, _Plan.of(order), _nothing, _no_more)
        with self._meters.phase("send"):
            self._wires.finish()

    def _plan(self, num_microbatches: int) -> _Plan:
        """What this rank does in a training step; worked out once for each number."""
        if num_microbatches not in self._plans:
            place = self._place
            order = self.pipeline.order(place.stage, place.replica, num_microbatches)
            self._plans[num_microbatches] = _Plan.of(order)
        return self._plans[num_microbatches]

    def _reader(self, batches: Iterator[Batch]) -> Ahead:
        """What reads `batches`; the same for all steps of an epoch, as it has read ahead."""
        found = self._ahead.get(self._is_training)
        if found is None or found.batches is not batches:
            is_whole = self._last_chunk == 0
            found = Ahead(batches, self._arithmetic.device, takes_target=is_whole)
            self._ahead[self._is_training] = found
        return found

    def _perform(
        self,
        step: _Step,
        plan: _Plan,
        before_last_backward: Callable[[int], object],
        on_forwards_done: Callable[[], object],
    ) -> None:
        # Links know all that will come, so that they can receive ahead (I5).
        self._wires.expect(plan.order, partial(self._message, step.work))
        num_left = plan.num_forwards
        if not num_left:
            # A bundle may have fewer micro-batches than replicas; all take part in the sync.
            on_forwards_done()
        for index, action in enumerate(plan.order):
            if index in plan.last:
                # The hooks of parameters run inside it, so the sync has to know before.
                before_last_backward(plan.last[index])
            match action.kind:
                case Pass.FORWARD:
                    # It may have been begun ahead.
                    if action.key not in step.in_flight:
                        self._forward(step, action)
                    if step.batches.reads_ahead and not self._wires.chunk(action):
                        with self._meters.phase("data"):
                            step.batches.look()
                    num_left -= 1
                    if not num_left:
                        on_forwards_done()
                case Pass.BACKWARD:
                    self._backward(step, action)
                case Pass.WEIGHT:
                    self._weight_pass(step, action)

    def _message(self, work: StepWork, j: int) -> Kind:
        return Kind(self._is_training, work.sizes[j], j if self._shapes_vary else None)

    def _receive(self, kind: LinkKind, chunk: int, j: int) -> Goods:
        with self._meters.phase("receive"):
            return self._wires.receive(kind, chunk, j)

    def _send(self, kind: LinkKind, chunk: int, work: StepWork, j: int, goods: Goods) -> None:
        with self._meters.phase("send"):
            self._wires.send(kind, chunk, j, self._message(work, j), goods)

    # --- the passes

    def _forward(self, step: _Step, action: Action) -> None:
        work, chunk, j = step.work, self._wires.chunk(action), action.microbatch
        self._meters.does(action, work.step)
        if self._is_training:
            # Dropout depends on these alone, not on the topology (I1); so does what a recipe draws.
            number = mix_seed(work.seed, work.step, work.first + j, chunk)
            door.seed(self._arithmetic.device, number)
        # [1]
        arguments, target = self._input(step, chunk, j)
        is_last = chunk == self._last_chunk
        # [2]
        with self._meters.phase("forward"), self._arithmetic.autocast():
            result = self._forwards[action.chunk](*arguments)
            outputs = [self._judge(step, j, result, target)] if is_last else _tensors(result)
        if not is_last:
            # [3] A gradient looks like what it belongs to, so its link is told no spec.
            if self._is_training:
                self._wires.learn_gradients(chunk, j, self._message(work, j), outputs)
            # What is sent is read later, and the next forward may write to a buffer before that.
            goods = Goods(copied_buffers(outputs, self._places), form_sent(_arguments(result)))
            self._send(LinkKind.ACTIVATION, chunk, work, j, goods)
        # [4]
        if self._is_training:
            inputs = _trained(_tensors(arguments))
            is_split = action.key in step.split
            step.in_flight[action.key] = _in_flight(inputs, _trained(outputs), is_last, is_split)

    def _input(self, step: _Step, chunk: int, j: int) -> tuple[tuple[Any, ...], object]:
        """What a chunk is called with, and for the last one the target."""
        if chunk > 0:
            found = self._receive(LinkKind.ACTIVATION, chunk, j)
            arguments: tuple[Any, ...] = built(found.form, iter(found.tensors))
            if chunk < self._last_chunk:
                return arguments, None
            # From stage 0, which alone reads the data (I4).
            found = self._receive(LinkKind.TARGET, chunk, j)
            return arguments, built(found.form, map(self._arithmetic.placed, found.tensors))
        with self._meters.phase("data"):
            batch = step.batches.take()
            arguments = self._prepared(batch)
        step.share.num_unreadable += batch.num_unreadable
        target = batch.target
        if self._last_chunk == 0:
            return arguments, mapped(self._arithmetic.placed, target)
        # As the data gave it: the last stage places it on its own device.
        goods = Goods(_tensors(target), form_sent(target))
        self._send(LinkKind.TARGET, 0, step.work, j, goods)
        return arguments, None

    def _prepared(self, batch: Batch) -> tuple[Any, ...]:
        """What the model is called with, on the device."""
        placed = self._arithmetic.placed
        inputs = mapped(placed, batch.inputs)
        arguments = model_inputs(self._recipe, inputs)
        # What the recipe has made of them there is to be as wide as the stage, too.
        return inputs if arguments is inputs else mapped(placed, arguments)

    def _judge(self, step: _Step, j: int, result: object, target: object) -> Tensor:
        """One micro-batch's share of the loss of the step."""
        size = step.work.sizes[j]
        found = self._recipe.loss(result, target)
        is_training = self._is_training
        share = share_of(found, size, step.work.num_samples, may_be_none=not is_training)
        with torch.no_grad():
            step.share.add(share, self._recipe.metrics(result, target))
            look = None if is_training else getattr(self._recipe, "evidence", None)
            if look is not None:
                step.share.evidence.append(look(result, target))
        if self._loss_check is not None and is_training:
            self._loss_check.look(found, result, target, size)
        return self._arithmetic.loss_scale.scaled(share.loss) if is_training else share.loss

    def _backward(self, step: _Step, action: Action) -> None:
        chunk, j = self._wires.chunk(action), action.microbatch
        self._meters.does(action, step.work.step)
        flight = step.in_flight.pop(action.key)
        edges, inputs, gradients = flight.edges, flight.inputs, flight.gradients
        # [5]
        if gradients is None and flight.loss is None:
            gradients = self._receive(LinkKind.GRADIENT, chunk, j).tensors
        # [6] With no gradients to send, nobody waits for a first pass: all is done at once.
        with self._meters.phase("backward"):
            if flight.loss is not None:
                torch.autograd.backward(flight.loss)
                found = [t.grad for t in inputs]
            elif action.key in step.split and edges and inputs:
                assert gradients is not None
                found, step.half_done[action.key] = input_pass(edges, gradients, inputs)
            else:
                if edges:
                    torch.autograd.backward(edges, gradients)
                found = [t.grad for t in inputs]
        # [7] The receiver counts on one tensor per input, so an unused one has zeros; and on the
        # strides of the input, as it takes the gradient for one of its own output.
        if chunk > 0:
            back = [
                torch.zeros_like(t) if g is None else with_strides(g, t.stride())
                for t, g in zip(inputs, found, strict=True)
            ]
            self._send(LinkKind.GRADIENT, chunk, step.work, j, Goods(back))

    def _weight_pass(self, step: _Step, action: Action) -> None:
        # None where the backward was not cut in two after all.
        rest = step.half_done.pop(action.key, None)
        if rest is not None:
            self._meters.does(action, step.work.step)
            with self._meters.phase("backward"):
                rest.run()


def _in_flight(
    inputs: list[Tensor], outputs: list[Tensor], is_last: bool, is_split: bool
) -> _InFlight:
    if is_last and not is_split and outputs:
        return _InFlight(inputs, [], None, outputs[0])
    seeds = [torch.ones_like(t) for t in outputs] if is_last else None
    return _InFlight(inputs, [get_gradient_edge(t) for t in outputs], seeds)


def _arguments(result: object) -> tuple[object, ...]:
    """What the next chunk is called with: each item of a tuple or list is one argument."""
    return tuple(result) if isinstance(result, (tuple, list)) else (result,)


def _tensors(value: object) -> list[Tensor]:
    """The tensors in what a chunk passes on, in order."""
    return [leaf for leaf in leaf_values(value) if isinstance(leaf, Tensor)]


def _trained(tensors: Iterable[Tensor]) -> list[Tensor]:
    return [t for t in tensors if t.requires_grad]
