"""Which operations of a graph change a tensor in place, and which only give another view of one."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

_VIEWS = {
    "chunk",
    "contiguous",
    "detach",
    "expand",
    "flatten",
    "movedim",
    "narrow",
    "permute",
    "reshape",
    "select",
    "split",
    "squeeze",
    "swapaxes",
    "tensor_split",
    "to",
    "transpose",
    "type_as",
    "unbind",
    "unflatten",
    "unsqueeze",
    "view",
    "view_as",
}
IN_PLACE_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.iadd,
    "sub": operator.isub,
    "mul": operator.imul,
    "truediv": operator.itruediv,
    "floordiv": operator.ifloordiv,
    "mod": operator.imod,
    "pow": operator.ipow,
    "matmul": operator.imatmul,
    "and": operator.iand,
    "or": operator.ior,
    "xor": operator.ixor,
    "lshift": operator.ilshift,
    "rshift": operator.irshift,
}
"""What `x += y` and its like call, by name."""
# Dropout hands its input through in evaluation.
_VIEW_MODULES = (nn.Identity, nn.Flatten, nn.Unflatten, nn.modules.dropout._DropoutNd)


def writes_in_place(node: fx.Node, model: nn.Module) -> bool:
    """Whether `node` overwrites its first input."""
    if node.op == "call_module":
        return bool(getattr(model.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    # relu(x, inplace=True), or `x += y`, which the tracer records as operator.iadd.
    if node.kwargs.get("inplace") or node.target in IN_PLACE_OPERATORS.values():
        return True
    name = _name(node)
    # torch's convention: add_ writes, __add__ does not.
    return name == "setitem" or (name.endswith("_") and not name.endswith("__"))


def is_view(node: fx.Node, model: nn.Module) -> bool:
    """Whether the result of `node` may share memory with its first input."""
    if node.op == "call_module":
        return isinstance(model.get_submodule(str(node.target)), _VIEW_MODULES)
    return node.target is operator.getitem or _name(node) in _VIEWS


def _name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def shared_memory(graph: fx.Graph, model: nn.Module) -> dict[fx.Node, list[fx.Node]]:
    """The results that may share memory with one that a node overwrites.

    Returns:
        Per overwriting node, those results in graph order, itself among them.
    """
    origin: dict[fx.Node, fx.Node] = {}
    members: dict[fx.Node, list[fx.Node]] = {}
    writers: list[fx.Node] = []
    for node in graph.nodes:
        is_writer = writes_in_place(node, model)
        inputs = node.all_input_nodes
        shares = bool(inputs) and (is_writer or is_view(node, model))
        # The root of a chain of views; a write through any of them reaches all.
        origin[node] = origin[inputs[0]] if shares else node
        members.setdefault(origin[node], []).append(node)
        writers += [node] if is_writer else []
    return {node: members[origin[node]] for node in writers}
