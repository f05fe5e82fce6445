"""A link: one directed edge of a bundle, first in, first out, received ahead of need (I5).

    sender    spec? t0 t1 | t0 t1 | ...        a message is the tensors of one micro-batch
    receiver  spec? t0 t1 | t0 t1 | ...        the spec travels once per kind of message

Both ends know the kind of every message (training or not, how many samples), so from the second
message of a kind on the receiver posts its buffers before the data is there, where the transport
lets it. Where samples differ in shape, each message is of a kind of its own: described, and posted
when that has come.

Why ranks cannot wait for each other in a circle:

- Making the two ends is collective, and all ranks make theirs in the one order of
  `Topology.bundle_links`. Of the links that somebody waits to make, the first in that order is the
  next of both its ranks, so it is made.
- In training, `send` waits for nobody, however far the sender is ahead: shared memory grows, or a
  thread waits until the receiver has taken earlier messages of the same link. So ranks wait only in
  `receive`, for a message whose `send` comes earlier in the schedule, as the simulation of the
  schedule allows. Messages on the way are no more than the schedule has in flight.
- In an evaluation nothing else keeps the front from running through the whole data set, so `send`
  waits until the receiver has taken all messages but `max_ahead`. All ranks do their forwards in
  one order, by (group, chunk, micro-batch). With no more messages of a group on the link than
  `max_ahead`, the message waited for is of an earlier group, or of an earlier micro-batch in the
  same chunk. So every wait, in `receive` or `send`, is for a forward that is earlier in this order,
  or the same one on the stage before.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.pipeline.message import (
    PACKED,
    Kind,
    Specs,
    TensorSpec,
    as_it_lies,
    described,
    packed,
    restore_strides,
    specs_of,
    unpacked,
)
from bundlerun.workers.pipeline.transports import open_receiver, open_sender
from bundlerun.workers.rank.comm import Group
from bundlerun.workers.values.nest import Form

__all__ = ["InLink", "Kind", "OutLink", "TensorSpec", "specs_of"]

_MAX_AHEAD = 32
"""Enough for groups of up to 32 micro-batches where ranks have several chunks."""


class OutLink:
    """The sending end.

    Collective: both ends, each rank making its links in one global order.

    Args:
        group: sender first, receiver second.
        tells_specs: whether a spec goes before the first message of a kind.
        max_ahead: messages of an evaluation that the receiver need not have taken yet; where ranks
            have several chunks, no fewer than one group of micro-batches has on this link.
    """

    def __init__(self, group: Group, *, tells_specs: bool, max_ahead: int = _MAX_AHEAD) -> None:
        self._sender = open_sender(group)
        self._tells_specs = tells_specs
        self._max_ahead = max_ahead
        self._told: dict[Kind, tuple[Specs, Form]] = {}

    def send(self, kind: Kind, tensors: Sequence[Tensor], form: Form = None) -> None:
        """Starts sending; returns before the data has left, so it must not change from here on.

        Args:
            kind: of message.
            tensors: in it.
            form: how they are nested (`workers.values.nest`), sent with the specs.

        Raises:
            ConfigError: the tensors differ from those of an earlier message of this kind.
            RuntimeError: the receiver is gone.
        """
        specs = specs_of(tensors)
        if self._tells_specs:
            specs = self._told_specs(kind, specs, form)
        # A graph ends at a cut: each stage goes back through its own.
        self._sender.send(
            [as_it_lies(t.detach(), spec) for t, spec in zip(tensors, specs, strict=True)]
        )
        if not kind.training:
            # An evaluation has no backward that holds the sender back. Some messages may be specs.
            num_specs = len(self._told) if kind.microbatch is None else self._max_ahead
            self._sender.wait(self._max_ahead + num_specs)

    def _told_specs(self, kind: Kind, specs: Specs, form: Form) -> Specs:
        """What the receiver has been told of this kind; tells it now, if this is the first."""
        if kind.microbatch is not None:
            self._sender.send([packed(specs, form)])
            return specs
        if kind not in self._told:
            self._told[kind] = specs, form
            self._sender.send([packed(specs, form)])
            return specs
        told_specs, told_form = self._told[kind]
        if [s._replace(strides=()) for s in specs] != [s._replace(strides=()) for s in told_specs]:
            # Gloo would fill a longer buffer in part without a word, and abort on a shorter one.
            raise ConfigError(
                f"a micro-batch of {kind.num_samples} samples sends {described(specs)} across a "
                f"cut, where {described(told_specs)} crossed a cut before; make all samples "
                "of one shape, or use --shape 1"
            )
        if form != told_form:
            raise ConfigError(
                f"a micro-batch of {kind.num_samples} samples sends the form {json.dumps(form)} "
                f"across a cut, where {json.dumps(told_form)} crossed a cut before; give all "
                "samples the same keys and lengths, or use --shape 1"
            )
        return told_specs

    def finish(self) -> None:
        """Returns when this process may end without losing a message.

        A step needs no such wait: buffers are kept until they have left, and the receiver takes all
        messages of a step before it ends that step. Only a process that ends must wait, if it has
        not heard from the receiver since.
        """
        self._sender.finish()


class _Posted(NamedTuple):
    specs: Specs
    form: Form
    arrived: Callable[[], list[Tensor]]


class InLink:
    """The receiving end.

    Collective: both ends, each rank making its links in one global order.

    Args:
        group: sender first, receiver second.
        device: where received tensors are wanted.
        is_told_specs: whether the sender tells the specs; else `learn` does, as for gradients.
    """

    def __init__(self, group: Group, device: torch.device, *, is_told_specs: bool) -> None:
        self._receiver = open_receiver(group, device)
        self._is_told = is_told_specs
        self._specs: dict[Kind, tuple[Specs, Form]] = {}
        self._expected: deque[Kind] = deque()
        self._posted: deque[_Posted] = deque()

    def expect(self, kinds: Iterable[Kind]) -> None:
        """Announces the next messages, in order; posts the first of them."""
        self._expected.extend(kinds)
        self._post()

    def learn(self, kind: Kind, specs: Specs) -> None:
        """Says what a kind of message looks like."""
        self._specs.setdefault(kind, (specs, None))

    def receive(self) -> list[Tensor]:
        """The tensors of the next expected message, see `receive_formed`."""
        return self.receive_formed()[0]

    def receive_formed(self) -> tuple[list[Tensor], Form]:
        """The next expected message, as leaves on the device that require grad where sent so.

        Returns:
            Its tensors, and how the sender had them nested.

        Raises:
            RuntimeError: the sender is gone, or sent nothing within the group's timeout.
        """
        if not self._posted:
            # Nothing was posted for a kind whose first message this is: its spec comes before it.
            if self._expected[0] not in self._specs and self._is_told:
                self._specs[self._expected[0]] = unpacked(self._receiver.post(PACKED)()[0])
            # A transport that posts nothing ahead (NCCL) has to now.
            self._post(at_least=1)
        specs, form, arrived = self._posted.popleft()
        tensors = arrived()
        # The next one may arrive while the rank works on this one.
        self._post()
        for tensor, spec in zip(tensors, specs, strict=True):
            restore_strides(tensor, spec)
            tensor.requires_grad_(spec.requires_grad)
        return tensors, form

    def _post(self, at_least: int = 0) -> None:
        most = max(self._receiver.posts_ahead, at_least)
        # Never past a kind without specs: what comes next on the wire is its spec, not the message.
        while self._expected and len(self._posted) < most and self._expected[0] in self._specs:
            kind = self._expected.popleft()
            # Of a message that is like no other, they are of no use to the next one.
            found = self._specs[kind] if kind.microbatch is None else self._specs.pop(kind)
            specs, form = found
            arrived = self._receiver.post(tuple(spec.in_memory for spec in specs))
            self._posted.append(_Posted(specs, form, arrived))
