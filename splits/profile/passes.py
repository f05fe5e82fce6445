"""One pass of training through a whole model, timed piece by piece.

    forward    piece 0 | piece 1 | piece 2 | loss      marks where each begins, and the number that
    numbers    0 .. 7    8 .. 12   13 .. 20  21 ..     autograd will give the next node
    backward   loss | piece 2 | piece 1 | piece 0      a hook at the first node of each

Autograd does the nodes that are ready in the order of their numbers, the highest first, and a node
needs only nodes of higher ones. So all nodes of a piece come before any of the piece before it, and
the one with the highest number first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node
from torch.utils._pytree import tree_leaves

from bundlerun.splits.profile.clock import Clock
from bundlerun.splits.profile.pieces import Sent

Judge = Callable[[Any], Tensor]
Around = Callable[[Callable[..., Any]], Callable[..., Any]]


def _as_it_is(forward: Callable[..., Any]) -> Callable[..., Any]:
    return forward


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """What is passed through.

    Args:
        forward: of the model; takes a `Marks` first, which it may tell where it has come to.
        count: of pieces.
        inputs: what it is called with after that; made anew for each pass.
        judge: the loss of what it returns.
        around: what a run has around a forward.
        context: that a run has forward and loss in, such as autocast.
    """

    forward: Callable[..., Any]
    count: int
    inputs: Callable[[], tuple[Any, ...]]
    judge: Judge
    around: Around = _as_it_is
    context: Callable[[], AbstractContextManager[object]] = nullcontext


class Listener(Protocol):
    """Follows a pass, piece by piece; the loss is one more piece, behind the last."""

    def enters(self, piece: int, *, is_backward: bool) -> None:
        """The pass is now in that piece."""

    def forward_is_over(self, outputs: Sequence[object]) -> None:
        """All that is kept for the backward is there; and the outputs, which are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Seconds of one pass: of each piece, and last of the loss.

    Args:
        forward: of each.
        backward: of each.
        inputs_only: of a backward that makes no gradients of parameters, as far as it goes; empty:
            none was asked for.
        reached: the first piece whose inputs have gradients.
        sent: at each boundary, as far as the forward has told.
    """

    forward: Sequence[float]
    backward: Sequence[float]
    inputs_only: Sequence[float] = ()
    reached: int = 0
    sent: Sequence[Sent] = ()

    @property
    def seconds(self) -> float:
        """Of the forward and the whole backward."""
        return sum(self.forward) + sum(self.backward)


@dataclass(slots=True)
class _Forward:
    """The marks of a forward."""

    clock: Clock
    listener: Listener | None
    marks: list[Any] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    pieces: list[int] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)

    def enter(self, piece: int, crossing: Sequence[object] | None = None) -> None:
        """See `Marks`; begin and loss are no boundaries, and nothing crosses them."""
        # Not again: a piece may be computed once more in the backward.
        if self.pieces and piece <= self.pieces[-1]:
            return
        if self.listener is not None:
            self.sent += [] if crossing is None else [_sent(crossing)]
            self.listener.enters(piece, is_backward=False)
        self.pieces.append(piece)
        self.numbers.append(_next_number())
        self.marks.append(self.clock.mark())

    def piece_of(self, number: int) -> int:
        """The piece that has made a node of that number."""
        place = bisect_right(self.numbers, number) - 1
        return self.pieces[max(place, 0)]


def _next_number() -> int:
    """What autograd gives the next node that this thread makes."""
    number: int = torch._C._autograd._get_sequence_nr()
    return number


def _sent(crossing: Sequence[object]) -> Sent:
    tensors = [leaf for leaf in tree_leaves(list(crossing)) if isinstance(leaf, Tensor)]
    sizes = [(t.numel() * t.element_size(), t.requires_grad) for t in tensors]
    return Sent(
        forward=sum(size for size, _ in sizes), backward=sum(size for size, has in sizes if has)
    )


def run_pass(
    subject: Subject,
    clock: Clock,
    *,
    listener: Listener | None = None,
    splits_backward: bool = False,
) -> Pass:
    """Does one; gradients are added to those there.

    Args:
        subject: a model in training.
        clock: times it.
        listener: follows it.
        splits_backward: whether to time a backward without the gradients of parameters, too.
    """
    inputs, told = subject.inputs(), _Forward(clock, listener)
    forward = subject.around(lambda *given: subject.forward(told, *given))
    with subject.context():
        told.enter(0)
        outputs = forward(*inputs)
        told.enter(subject.count)
        loss = subject.judge(outputs)
        told.marks.append(clock.mark())
    if listener is not None:
        listener.forward_is_over((outputs, loss))
    del inputs, outputs
    seconds = _by_piece(subject.count, told.pieces, clock.seconds(told.marks))
    if not loss.requires_grad:
        return Pass(forward=seconds, backward=[0.0] * len(seconds), sent=told.sent)
    graph = _Graph.of(loss, told)
    part = Pass(forward=seconds, backward=(), reached=graph.reached, sent=told.sent)
    only: list[float] = []
    if splits_backward:
        only = _backward(
            subject.count, clock, None, graph,
            lambda: graph.edges and torch.autograd.grad(
                loss, graph.edges, retain_graph=True, allow_unused=True
            ),
        )  # fmt: skip
    whole = _backward(subject.count, clock, listener, graph, loss.backward)
    return Pass(
        forward=part.forward,
        backward=whole,
        inputs_only=only,
        reached=part.reached,
        sent=part.sent,
    )


def _by_piece(count: int, pieces: Sequence[int], seconds: Sequence[float]) -> list[float]:
    found = [0.0] * (count + 1)
    for piece, spent in zip(pieces, seconds, strict=True):
        found[piece] += spent
    return found


@dataclass(frozen=True, slots=True)
class _Graph:
    """What a backward goes through.

    Args:
        first: the node of each piece that comes first.
        reached: the first piece that gets gradients from the one after it, and one more.
        edges: where these gradients arrive.
    """

    first: dict[int, Node]
    reached: int
    edges: list[GradientEdge]

    @classmethod
    def of(cls, loss: Tensor, told: _Forward) -> _Graph:
        assert loss.grad_fn is not None
        places: dict[Node, int] = {}
        first: dict[int, tuple[int, Node]] = {}
        crossing: list[tuple[int, int, GradientEdge]] = []
        stack = [loss.grad_fn]
        while stack:
            node = stack.pop()
            if node in places:
                continue
            number = node._sequence_nr()
            piece = places[node] = told.piece_of(number)
            if piece not in first or number > first[piece][0]:
                first[piece] = number, node
            for child, index in node.next_functions:
                # A leaf is done as soon as its gradient is there, and has no number of its own.
                if child is None or hasattr(child, "variable"):
                    continue
                stack.append(child)
                below = told.piece_of(child._sequence_nr())
                if below < piece:
                    crossing.append((below, piece, GradientEdge(child, index)))
        lowest = min((below for below, _, _ in crossing), default=-1)
        edges = {(e.node, e.output_nr): e for below, _, e in crossing if below == lowest}
        nodes = {piece: node for piece, (_, node) in first.items()}
        return cls(nodes, lowest + 1, list(edges.values()))


def _backward(
    count: int,
    clock: Clock,
    listener: Listener | None,
    graph: _Graph,
    run: Callable[[], object],
) -> list[float]:
    """Seconds of each piece, and of the loss."""
    marks: list[Any] = []
    pieces: list[int] = []

    def entering(piece: int) -> Callable[[object], None]:
        def hook(_: object) -> None:
            if listener is not None:
                listener.enters(piece, is_backward=True)
            pieces.append(piece)
            marks.append(clock.mark())

        return hook

    with ExitStack() as stack:
        for piece, node in graph.first.items():
            if piece != count:
                stack.callback(node.register_prehook(entering(piece)).remove)
        entering(count)(None)
        run()
        marks.append(clock.mark())
    return _by_piece(count, pieces, clock.seconds(marks))
