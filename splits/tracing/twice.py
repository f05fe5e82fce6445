"""Whether two graphs of one model are equal, else where they part first."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx, nn

from bundlerun.splits.state import find_attribute
from bundlerun.splits.tracing.region import region_of


def first_difference(graph: fx.Graph, other: fx.Graph, model: nn.Module) -> fx.Node | None:
    """The first node of one graph that is not in the other, in order; None where they are equal.

    Args:
        model: has the modules, parameters and constants of both.
    """
    # By place: the constants of the second graph have other names.
    numbers = {node: i for one in (graph, other) for i, node in enumerate(one.nodes)}
    for a, b in zip_longest(graph.nodes, other.nodes):
        if a is None or b is None or not _is_same(a, b, numbers, model):
            found: fx.Node = b if a is None else a
            return found
    return None


def _is_same(a: fx.Node, b: fx.Node, numbers: dict[fx.Node, int], model: nn.Module) -> bool:
    if a.op != b.op or region_of(a) != region_of(b):
        return False
    if a.op == "get_attr":
        return _is_same_state(find_attribute(model, str(a.target)), a, b, model)
    if _named(a.target) != _named(b.target):
        return False
    return _text((a.args, a.kwargs), numbers) == _text((b.args, b.kwargs), numbers)


def _is_same_state(value: object, a: fx.Node, b: fx.Node, model: nn.Module) -> bool:
    if a.target == b.target:
        return True
    other = find_attribute(model, str(b.target))
    if not isinstance(value, Tensor) or not isinstance(other, Tensor):
        return False
    is_alike = (value.shape, value.dtype, value.device) == (other.shape, other.dtype, other.device)
    # A constant made in each call is another object each time; its numbers have to be equal.
    return is_alike and (value.is_meta or torch.equal(value, other))


def _text(value: Any, numbers: dict[fx.Node, int]) -> str:  # noqa: ANN401 - any argument of a node
    if isinstance(value, fx.Node):
        return f"node {numbers[value]}"
    if isinstance(value, dict):
        return f"{{{_texts(value.items(), numbers)}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({_texts(value, numbers)})"
    if isinstance(value, slice):
        return f"slice({_texts((value.start, value.stop, value.step), numbers)})"
    return str(_named(value))


def _texts(values: Iterable[object], numbers: dict[fx.Node, int]) -> str:
    return ", ".join(_text(value, numbers) for value in values)


def _named(value: object) -> str:
    """A function by its name, as one that is made in each call is another object each time."""
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', value)}"
    return repr(value)
