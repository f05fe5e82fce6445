"""A backward in two passes: first the gradients of a stage's inputs, later those of its weights.

    loss <- n3 <- n2 <- n1 <- input      [1] input pass: along the path; what arrives at a node that
             |     |     |               has weights is kept
            w3    w2    w1               [2] weight pass: from each of these nodes to its weights

No operation is done twice: nodes of autograd work out only the gradients that are asked for. Some
work out all of theirs at once, such as a batch norm of cuDNN and what is written in Python: what
they have for weights is taken in the input pass, and added in the weight pass. The exception is a
weight that several nodes use: its weight pass goes along the path between them.

Source: Qi et al., Zero Bubble Pipeline Parallelism. torch.distributed.pipelining has the like in
private functions; those set `.grad` without calling hooks, and leave out weights whose way to the
outputs does not meet the path from the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

Gradients = tuple[Tensor | None, ...]

_ALL_AT_ONCE = (
    "CudnnBatchNormBackward0",
    "MiopenBatchNormBackward0",
    "NativeBatchNormBackward0",
    "NativeLayerNormBackward0",
    "NativeGroupNormBackward0",
)
"""Nodes of torch that work out all their gradients, whichever are asked for (cuDNN's, MIOpen's), or
whose weights' part is small and the rest the same again."""


@dataclass(slots=True)
class _Piece:
    """Weights that share nodes, and where their gradients come from."""

    on_path: list[Node] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)
    """Outputs of the stage from which the weights are reached off the path."""
    gradients: list[Tensor] = field(default_factory=list)


class WeightPass:
    """What is left of a backward after its input pass; holds the activations that it needs."""

    def __init__(self, pieces: list[_Piece], arrived: dict[Node, Gradients]) -> None:
        self._pieces = pieces
        self._arrived = arrived

    def run(self) -> None:
        """Adds to the gradients of the weights what one whole backward would; to be called once."""
        while self._pieces:
            self._run(self._pieces.pop())

    def _run(self, piece: _Piece) -> None:
        edges, gradients = piece.edges, piece.gradients
        arrived = {node: self._arrived.pop(node) for node in piece.on_path}
        # [2] Begins where the input pass came by, with what arrived there.
        for node, values in arrived.items():
            for number, value in enumerate(values):
                if value is not None:
                    edges.append(GradientEdge(node, number))
                    gradients.append(value)
        # No gradient came by: these weights have no part in the outputs.
        if not edges:
            return
        # What one of several nodes sends along the path has arrived at the next one already.
        fixed = arrived if len(arrived) > 1 else {}
        with _hooked({node: _replaced_by(values) for node, values in fixed.items()}):
            torch.autograd.backward(edges, gradients, retain_graph=True, inputs=piece.weights)


def input_pass(
    edges: Sequence[GradientEdge], gradients: Sequence[Tensor], inputs: Sequence[Tensor]
) -> tuple[list[Tensor | None], WeightPass]:
    """The gradients of `inputs`, and what is left to do.

    Args:
        edges: where the gradients of the outputs are put in.
        gradients: of the outputs.
        inputs: leaves that require grad, at least one.

    Returns:
        A gradient per input, None where no output depends on it.
    """
    graph = _Graph.of(edges, {get_gradient_edge(t).node for t in inputs})
    early = graph.early_weights()
    pieces = _pieces(edges, gradients, graph, set(early))
    # [1] Only the path is walked: autograd skips what leads to none of `inputs`.
    arrived: dict[Node, Gradients] = {}

    def keep(node: Node) -> Callable[[Gradients], None]:
        return lambda values: arrived.update({node: values})

    with _hooked({node: keep(node) for piece in pieces for node in piece.on_path}):
        found = torch.autograd.grad(
            list(edges),
            [*inputs, *early.values()],
            list(gradients),
            retain_graph=True,
            allow_unused=True,
        )
    for node, gradient in zip(early, found[len(inputs) :], strict=True):
        # It is whole, over all nodes that use the weight; so nothing is left to walk.
        if gradient is not None:
            place = GradientEdge(node, 0)
            pieces.append(_Piece(weights=[early[node]], edges=[place], gradients=[gradient]))
    return list(found[: len(inputs)]), WeightPass(pieces, arrived)


@dataclass(frozen=True, slots=True)
class _Graph:
    """What is below the outputs of a stage.

    Args:
        order: all nodes, each after those that it sends gradients to.
        on_path: the nodes that lead to inputs.
    """

    order: list[Node]
    on_path: set[Node]

    @classmethod
    def of(cls, edges: Sequence[GradientEdge], inputs: set[Node]) -> _Graph:
        order, on_path = _children_first(edges), set(inputs)
        # Children come first, so what a node leads to is known when it is looked at.
        for node in order:
            if any(child in on_path for child in _below(node)):
                on_path.add(node)
        return cls(order, on_path)

    def early_weights(self) -> dict[Node, Tensor]:
        """The weights whose gradients the input pass works out anyway, by their nodes."""
        found: dict[Node, Tensor] = {}
        for node in self.order:
            if node not in self.on_path or not _works_out_all(node):
                continue
            for child in _below(node):
                weight = _weight_of(child)
                # A hook of the user's would see the gradient twice: taken, and added.
                if weight is not None and child not in self.on_path and not weight._backward_hooks:
                    found[child] = weight
        return found


def _works_out_all(node: Node) -> bool:
    return node.name() in _ALL_AT_ONCE or isinstance(node, torch._C._FunctionBase)


def _below(node: Node) -> list[Node]:
    return [child for child, _ in node.next_functions if child is not None]


def _pieces(
    edges: Sequence[GradientEdge], gradients: Sequence[Tensor], graph: _Graph, early: set[Node]
) -> list[_Piece]:
    """The weights below `edges` but `early` ones; those with a node in common in one piece."""
    order, on_path = graph.order, graph.on_path
    has_weights: set[Node] = set()
    neighbours: dict[Node, list[Node]] = {}
    for node in order:
        # Weights are tied together off the path only; a path node is as far as their piece goes.
        joined = [n for n in _below(node) if n in has_weights and n not in on_path]
        is_weight = _weight_of(node) is not None and node not in on_path and node not in early
        if joined or is_weight:
            has_weights.add(node)
            neighbours.setdefault(node, []).extend(joined)
            for child in joined:
                neighbours[child].append(node)
    # Nodes that share a weight, or a node above it, are one piece.
    pieces: dict[Node, _Piece] = {}
    for node in order:
        if node in neighbours and node not in pieces:
            pieces.update(dict.fromkeys(_connected(node, neighbours), _Piece()))
    for node, piece in pieces.items():
        weight = _weight_of(node)
        if node in on_path:
            piece.on_path.append(node)
        elif weight is not None:
            piece.weights.append(weight)
    # An output off the path: the input pass does not come by, so its gradient is put in here.
    for edge, gradient in zip(edges, gradients, strict=True):
        if edge.node in pieces and edge.node not in on_path:
            pieces[edge.node].edges.append(edge)
            pieces[edge.node].gradients.append(gradient)
    # By identity: each of its nodes has the piece.
    return list({id(piece): piece for piece in pieces.values()}.values())


def _weight_of(node: Node) -> Tensor | None:
    weight: Tensor | None = getattr(node, "variable", None)
    return weight


def _children_first(edges: Sequence[GradientEdge]) -> list[Node]:
    """All nodes below `edges`, each after those that it sends gradients to."""
    order: dict[Node, None] = {}
    opened: set[Node] = set()
    # No recursion: graphs are deeper than Python's stack.
    stack = [edge.node for edge in edges]
    while stack:
        node = stack[-1]
        if node in opened:
            stack.pop()
            order.setdefault(node)
            continue
        opened.add(node)
        stack += [n for n, _ in node.next_functions if n is not None and n not in opened]
    return list(order)


def _connected(first: Node, neighbours: Mapping[Node, Sequence[Node]]) -> list[Node]:
    found = {first: None}
    stack = [first]
    while stack:
        for node in neighbours[stack.pop()]:
            if node not in found:
                found[node] = None
                stack.append(node)
    return list(found)


def _replaced_by(values: Gradients) -> Callable[[Gradients], Gradients]:
    return lambda _: values


@contextmanager
def _hooked(hooks: Mapping[Node, Callable[[Gradients], Gradients | None]]) -> Iterator[None]:
    """Calls a hook with the gradients that arrive at its node, while inside."""
    with ExitStack() as stack:
        for node, hook in hooks.items():
            stack.callback(node.register_prehook(hook).remove)
        yield
