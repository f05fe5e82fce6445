"""Contexts of a forward around some of its operations: `no_grad`, `inference_mode`, `autocast`.

    with torch.no_grad():          a   no_grad      enter no_grad, a, b
        x = b(a(x))                b   no_grad      leave, c
    x = c(x)                       c

fx records operations only. So each remembers the contexts around it, and a stage enters them again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import fx
from torch.amp import autocast_mode
from torch.autograd import grad_mode

Leave = tuple[Callable[..., Any], fx.Node]
REGION = "region"
"""Where the `meta` of a node has its region; nothing there: none."""
_ENTERS = re.compile(r"\w+ = torch\.amp\.autocast_mode\._enter_autocast(\(.*?\))")
_LEAVES = re.compile(r"\w+ = torch\.amp\.autocast_mode\._exit_autocast\(")
"""How the code of a graph has the calls that enter and leave an autocast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Autocast:
    """What one `torch.autocast` says."""

    device: str
    dtype: torch.dtype
    is_enabled: bool
    is_cached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """The contexts around an operation, as far as they differ from those around the forward."""

    grad: bool | None = None
    is_inference: bool = False
    autocasts: tuple[Autocast, ...] = ()


def region_of(node: fx.Node) -> Region | None:
    """The region that a node was recorded in."""
    return cast("Region | None", node.meta.get(REGION))


def enter_regions(graph: fx.Graph) -> None:
    """Makes a graph enter and leave the regions of its nodes.

    The calls are those that torch has for graphs. The code of the graph has `with torch.autocast`
    instead, which torch.compile knows in all versions: the calls break its graphs up to 2.11.
    """
    graph.on_generate_code(lambda _: _with_statements)
    last: Region | None = None
    leave: list[Leave] = []
    for node in [n for n in graph.nodes if n.op not in ("placeholder", "get_attr")]:
        # All regions are left before the end: a stage changes no mode of its caller.
        region = None if node.op == "output" else region_of(node)
        if region == last:
            continue
        with graph.inserting_before(node):
            # In the opposite order, as `with` statements end.
            for function, argument in reversed(leave):
                graph.call_function(function, (argument,))
            leave = list(_enter(graph, region)) if region else []
        last = region


def _enter(graph: fx.Graph, region: Region) -> Iterator[Leave]:
    """Adds the calls that enter a region; yields those that leave it, in the opposite order."""
    # Inference mode has no gradients anyway: `grad` adds nothing to it.
    if region.is_inference:
        mode = graph.call_function(grad_mode._enter_inference_mode, (True,))
        yield grad_mode._exit_inference_mode, mode
    elif region.grad is not None:
        before = graph.call_function(torch.is_grad_enabled)
        graph.call_function(torch._C._set_grad_enabled, (region.grad,))
        yield torch._C._set_grad_enabled, before
    for one in region.autocasts:
        values = (one.device, one.dtype, one.is_enabled, one.is_cached)
        mode = graph.call_function(autocast_mode._enter_autocast, values)
        yield autocast_mode._exit_autocast, mode


def _with_statements(body: list[str]) -> list[str]:
    """The lines of a graph's code, what is between two such calls in a `with` statement."""
    made: list[str] = []
    depth = 0
    for line in "".join(body).splitlines(keepends=True):
        indent = "    " * depth
        if entered := _ENTERS.match(line):
            made.append(f"{indent}with torch.amp.autocast_mode.autocast{entered[1]}:\n")
            depth += 1
        elif _LEAVES.match(line):
            depth -= 1
        else:
            made.append(indent + line)
    return made
