"""Performs the schedule of one rank: its stage, its links, its receives posted ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from launcher.topology import Link, LinkKind, Place, Topology
from workers.comm import Group
from workers.links import InLink, Kind, OutLink, TensorSpec, specs_of
from workers.meters import Meters
from workers.order import mix_seed
from workers.recipe import Recipe
from workers.samples import Batch
from workers.schedule import Action, Pass, forward_only, one_forward_one_backward


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one bundle does in one step.

    Args:
        seed: of the run.
        step: number of the step in the run.
        first: number in the step of this bundle's first micro-batch; they are consecutive.
        sizes: samples in each of this bundle's micro-batches.
        num_samples: samples of the step over all bundles.
    """

    seed: int
    step: int
    first: int
    sizes: Sequence[int]
    num_samples: int


@dataclass(slots=True)
class Outcome:
    """What the last stage found; stays empty elsewhere."""

    loss: Tensor | None = None
    """This rank's share of the mean loss of the step."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """Sums over this rank's samples."""
    num_samples: int = 0
    num_unreadable: int = 0

    def add(self, loss: Tensor, metrics: dict[str, Tensor], num_samples: int) -> None:
        """Adds one micro-batch."""
        self.loss = loss if self.loss is None else self.loss + loss
        for name, value in metrics.items():
            self.metrics[name] = self.metrics.get(name, 0) + value.double()
        self.num_samples += num_samples


@dataclass(slots=True)
class _InFlight:
    """A micro-batch between its forward and its backward."""

    inputs: list[Tensor]
    outputs: list[Tensor]


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
        precision: str,
        meters: Meters,
    ) -> None:
        self.stage = stage
        self._shape = topology.shape
        self._place = place
        self._recipe = recipe
        self._device = device
        self._precision = precision
        self._meters = meters
        self._in: dict[tuple[LinkKind, int], InLink] = {}
        self._out: dict[tuple[LinkKind, int], OutLink] = {}
        for link, group in links.items():
            told = link.kind is not LinkKind.GRADIENT
            if link.src == place.rank:
                peer = topology.places[link.dst].replica
                self._out[link.kind, peer] = OutLink(group, tells_specs=told)
            else:
                peer = topology.places[link.src].replica
                self._in[link.kind, peer] = InLink(group, device, is_told_specs=told)

    @property
    def is_first(self) -> bool:
        """Whether this rank reads the data (I4)."""
        return self._place.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank computes the loss."""
        return self._place.stage == len(self._shape) - 1

    def train(
        self, work: StepWork, batches: Iterator[Batch], before_last_backward: Callable[[], None]
    ) -> Outcome:
        """Runs forward and backward of one step; gradients are added to those there.

        Collective: every rank of the bundle.

        Args:
            work: this bundle's share of the step.
            batches: the batches of this rank's micro-batches in order; read on stage 0 only.
            before_last_backward: called once, unless this rank has nothing to do.
        """
        self.stage.train()
        actions = one_forward_one_backward(
            self._shape, self._place.stage, self._place.replica, len(work.sizes)
        )
        return self._perform(work, actions, batches, before_last_backward)

    @torch.no_grad()
    def evaluate(self, work: StepWork, batches: Iterator[Batch]) -> Outcome:
        """Runs the forwards of one step in evaluation mode; arguments as for `train`."""
        self.stage.eval()
        actions = forward_only(self._shape, self._place.stage, self._place.replica, len(work.sizes))
        return self._perform(work, actions, batches, lambda: None)

    def _perform(
        self,
        work: StepWork,
        actions: Sequence[Action],
        batches: Iterator[Batch],
        before_last_backward: Callable[[], None],
    ) -> Outcome:
        outcome = Outcome()
        in_flight: dict[int, _InFlight] = {}
        self._expect(work, actions)
        for position, action in enumerate(actions):
            j = action.microbatch
            if action.kind is Pass.FORWARD:
                in_flight[j] = self._forward(work, j, batches, outcome)
                if not self.stage.training:
                    del in_flight[j]
                continue
            if position == len(actions) - 1:
                before_last_backward()
            self._backward(work, j, in_flight.pop(j))
        with self._meters.phase("send"):
            for link in self._out.values():
                link.finish()
        return outcome

    # --- links

    def _peer(self, stage: int, j: int) -> int:
        return j % self._shape[stage]

    def _source(self, kind: LinkKind, j: int) -> InLink:
        stage = self._place.stage
        sender = {
            LinkKind.ACTIVATION: stage - 1,
            LinkKind.GRADIENT: stage + 1,
            LinkKind.TARGET: 0,
        }[kind]
        return self._in[kind, self._peer(sender, j)]

    def _kind(self, work: StepWork, j: int) -> Kind:
        return Kind(self.stage.training, work.sizes[j])

    def _expect(self, work: StepWork, actions: Sequence[Action]) -> None:
        """Announces to each incoming link what will come in this step, in order."""
        for action in actions:
            j = action.microbatch
            if action.kind is Pass.BACKWARD:
                wanted = [] if self.is_last else [LinkKind.GRADIENT]
            elif self.is_first:
                wanted = []
            else:
                wanted = [LinkKind.ACTIVATION] + [LinkKind.TARGET] * self.is_last
            for kind in wanted:
                self._source(kind, j).expect([self._kind(work, j)])

    def _receive(self, kind: LinkKind, j: int) -> list[Tensor]:
        with self._meters.phase("receive"):
            return self._source(kind, j).receive()

    def _send(self, kind: LinkKind, stage: int, work: StepWork, j: int, what: list[Tensor]) -> None:
        with self._meters.phase("send"):
            self._out[kind, self._peer(stage, j)].send(self._kind(work, j), what)

    # --- the two passes

    def _forward(
        self, work: StepWork, j: int, batches: Iterator[Batch], outcome: Outcome
    ) -> _InFlight:
        inputs, target = self._input(work, j, batches, outcome)
        with self._meters.phase("forward"), self._autocast():
            if self.stage.training:
                # Dropout depends on these alone, not on the topology (I1).
                number = work.first + j
                torch.manual_seed(mix_seed(work.seed, work.step, number, self._place.stage))
            result = self.stage(*inputs)
            if self.is_last:
                assert target is not None
                return _InFlight(inputs, [self._judge(work, j, result, target, outcome)])
        outputs = [result] if isinstance(result, Tensor) else list(result)
        if self.stage.training:
            self._learn_gradients(work, j, specs_of(outputs))
        self._send(LinkKind.ACTIVATION, self._place.stage + 1, work, j, outputs)
        return _InFlight(inputs, outputs)

    def _input(
        self, work: StepWork, j: int, batches: Iterator[Batch], outcome: Outcome
    ) -> tuple[list[Tensor], Tensor | None]:
        if self.is_first:
            with self._meters.phase("data"):
                batch = next(batches)
                inputs = [self._placed(t) for t in batch.inputs]
            outcome.num_unreadable += batch.num_unreadable
            if self.is_last:
                return inputs, self._placed(batch.target)
            last = len(self._shape) - 1
            self._send(LinkKind.TARGET, last, work, j, [batch.target])
            return inputs, None
        inputs = self._receive(LinkKind.ACTIVATION, j)
        target = self._receive(LinkKind.TARGET, j)[0] if self.is_last else None
        return inputs, None if target is None else self._placed(target)

    def _placed(self, tensor: Tensor) -> Tensor:
        is_wide = self._precision == "float64" and tensor.is_floating_point()
        dtype = torch.float64 if is_wide else tensor.dtype
        return tensor.to(self._device, dtype, non_blocking=True)

    def _judge(
        self, work: StepWork, j: int, result: object, target: Tensor, outcome: Outcome
    ) -> Tensor:
        """The loss of one micro-batch, weighted by its samples over the step's (I1)."""
        size = work.sizes[j]
        loss = self._recipe.loss(result, target) * (size / work.num_samples)
        with torch.no_grad():
            outcome.add(loss.detach().double(), self._recipe.metrics(result, target), size)
        return loss

    def _backward(self, work: StepWork, j: int, flight: _InFlight) -> None:
        outputs = [t for t in flight.outputs if t.requires_grad]
        gradients = None if self.is_last else self._receive(LinkKind.GRADIENT, j)
        with self._meters.phase("backward"):
            if outputs:
                torch.autograd.backward(outputs, gradients)
        if self.is_first:
            return
        back = [
            torch.zeros_like(t) if t.grad is None else t.grad
            for t in flight.inputs
            if t.requires_grad
        ]
        self._send(LinkKind.GRADIENT, self._place.stage - 1, work, j, back)

    def _learn_gradients(self, work: StepWork, j: int, specs: tuple[TensorSpec, ...]) -> None:
        wanted = tuple(s._replace(requires_grad=False) for s in specs if s.requires_grad)
        self._source(LinkKind.GRADIENT, j).learn(self._kind(work, j), wanted)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return nullcontext()
