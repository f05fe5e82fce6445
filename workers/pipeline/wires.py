"""All links of one rank in its bundle: which of them carries what, by chunk and micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from bundlerun.launcher.layout.schedule import Action, Order, Pass, Pipeline
from bundlerun.launcher.layout.topology import Link, LinkKind, Place, Topology
from bundlerun.launcher.why.sheet import Message, Sheet
from bundlerun.workers.pipeline.links import InLink, Kind, OutLink, specs_of
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.values.nest import Form

Edge = tuple[LinkKind, int, int]
"""Kind and chunk of a link, and the replica at its other end."""
_MESSAGES = {
    LinkKind.ACTIVATION: Message.ACTIVATION,
    LinkKind.GRADIENT: Message.GRADIENT,
    LinkKind.TARGET: Message.TARGET,
}


@dataclass(frozen=True, slots=True)
class Goods:
    """What goes over a link for one micro-batch.

    Args:
        tensors: in order.
        form: how they are nested (`bundlerun.workers.values.nest`).
    """

    tensors: list[Tensor]
    form: Form = None


class Wires:
    """Finds the link for what a rank sends or receives. Chunks are those of the model.

    Making it is collective: every rank of the bundle.

    Args:
        topology: the layout of the round.
        place: this rank.
        links: the communicator of each link of this rank.
        pipeline: says how far a sender may be ahead.
        device: where received tensors are wanted.
        sheet: is told whom this rank waits for; None: nobody looks.
    """

    def __init__(
        self,
        topology: Topology,
        place: Place,
        links: Mapping[Link, Group],
        pipeline: Pipeline,
        device: torch.device,
        sheet: Sheet | None = None,
    ) -> None:
        self.place = place
        self.last_chunk = topology.num_chunks - 1
        self._widths = topology.shape.widths
        self._chunks = topology.chunks
        self._sheet = sheet or Sheet.private()
        self._in: dict[Edge, InLink] = {}
        self._senders: dict[Edge, int] = {}
        self._out: dict[Edge, OutLink] = {}
        for link, group in links.items():
            # Gradients look like the outputs they are for: the receiver has made those itself.
            told = link.kind is not LinkKind.GRADIENT
            if link.src == place.rank:
                peer = topology.places[link.dst].replica
                self._out[link.kind, link.chunk, peer] = OutLink(
                    group, tells_specs=told, max_ahead=pipeline.largest_group
                )
            else:
                peer = topology.places[link.src].replica
                self._in[link.kind, link.chunk, peer] = InLink(group, device, is_told_specs=told)
                self._senders[link.kind, link.chunk, peer] = link.src

    def chunk(self, action: Action) -> int:
        """The chunk of the model that an action of this rank is about."""
        return self._chunks.number(self.place.stage, action.chunk)

    def expect(self, order: Order, message: Callable[[int], Kind]) -> None:
        """Announces to each incoming link what will come, in order.

        Args:
            order: what this rank is going to do.
            message: what is sent for a micro-batch.
        """
        if not self._in:
            return
        for action in order:
            chunk, j = self.chunk(action), action.microbatch
            is_last = chunk == self.last_chunk
            wanted: list[LinkKind] = []
            if action.kind is Pass.BACKWARD and not is_last:
                wanted = [LinkKind.GRADIENT]
            elif action.kind is Pass.FORWARD and chunk > 0:
                wanted = [LinkKind.ACTIVATION] + [LinkKind.TARGET] * is_last
            # Between two ranks in the order of both: the sender goes by the same schedule (I5).
            for kind in wanted:
                self._source(kind, chunk, j).expect([message(j)])

    def learn_gradients(self, chunk: int, j: int, message: Kind, outputs: list[Tensor]) -> None:
        """Says what gradients will come back for what `chunk` is about to send."""
        # Outputs that need no gradient get none; a gradient has none of its own.
        specs = [s._replace(requires_grad=False) for s in specs_of(outputs) if s.requires_grad]
        self._source(LinkKind.GRADIENT, chunk, j).learn(message, tuple(specs))

    def receive(self, kind: LinkKind, chunk: int, j: int) -> Goods:
        """Waits for what `chunk` needs for micro-batch `j`."""
        edge = self._edge(kind, chunk, j)
        self._sheet.awaits(_MESSAGES[kind], self._senders[edge], j)
        return Goods(*self._in[edge].receive_formed())

    def send(self, kind: LinkKind, chunk: int, j: int, message: Kind, goods: Goods) -> None:
        """Sends what `chunk` has for micro-batch `j`; see `OutLink.send`."""
        match kind:
            case LinkKind.ACTIVATION:
                to = chunk + 1
            case LinkKind.GRADIENT:
                to = chunk - 1
            case LinkKind.TARGET:
                to = self.last_chunk
        out = self._out[kind, chunk, self._peer(to, j)]
        out.send(message, goods.tensors, goods.form)

    def finish(self) -> None:
        """Returns when this process may end without losing a message."""
        for link in self._out.values():
            link.finish()

    def _peer(self, chunk: int, j: int) -> int:
        """The replica that does micro-batch `j` on the stage of `chunk`."""
        return j % self._widths[self._chunks.stage_of(chunk)]

    def _source(self, kind: LinkKind, chunk: int, j: int) -> InLink:
        """The link that brings what `chunk` needs for micro-batch `j`."""
        return self._in[self._edge(kind, chunk, j)]

    def _edge(self, kind: LinkKind, chunk: int, j: int) -> Edge:
        if kind is LinkKind.TARGET:
            return kind, 0, self._peer(0, j)
        sender = chunk - 1 if kind is LinkKind.ACTIVATION else chunk + 1
        return kind, sender, self._peer(sender, j)
