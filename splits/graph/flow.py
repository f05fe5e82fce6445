"""What flows from operation to operation of one graph, and where it may be cut.

    step   0       1       2        3        4       5       6
    x --> conv --> bn --> relu --> conv --> bn --> add --> relu --> ...
     |________________________|________________|____|
                              |                |
                         boundary 3       boundary 5

Two tensors cross each of the two boundaries: x, and what the step before the boundary made.
"""

from __future__ import annotations

import builtins
import math
import operator
import re
from collections.abc import Iterable
from functools import cached_property

import torch
from torch import fx, nn

from bundlerun.splits.graph.alias import shared_memory
from bundlerun.splits.state import named_state, names_by_id, tensors_of

_SIZE_METHODS = {"size", "dim", "ndimension", "numel", "nelement", "stride", "is_floating_point"}
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device", "requires_grad", "is_cuda", "itemsize"}
_OF_OPERATIONS = ("torch.nn.", "torch.ao.nn.", "torchvision.ops.")
_PLAIN_MODULES = {operator.__name__, "_operator", math.__name__, builtins.__name__}


def is_state(node: fx.Node) -> bool:
    """Whether `node` is a parameter, a buffer or a constant; each stage has its own access."""
    return node.op == "get_attr"


class Flow:
    """One graph as a sequence of steps.

    A step is an operation on tensors. Sizes and other plain values are no steps: they belong to
    the tensors they come from, and a stage that needs them works them out again.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self.graph = graph
        self._model = model
        self.values: set[fx.Node] = set()
        self.place: dict[fx.Node, int] = {}
        """Step at which a node's result is there; -1 for inputs and parameters."""
        self.steps: list[fx.Node] = []
        for node in graph.nodes:
            self._add(node)
        self.last_use = {node: self._last_use(node) for node in graph.nodes}

    def _add(self, node: fx.Node) -> None:
        if is_value(node, self.values):
            self.values.add(node)
        if node.op in ("placeholder", "get_attr"):
            self.place[node] = -1
        elif node.op == "output":
            self.place[node] = len(self.steps)
        # Known as soon as what it comes from is: it needs no step, and stays with its source.
        elif node in self.values or _is_item(node):
            self.place[node] = max((self.place[n] for n in node.all_input_nodes), default=-1)
        else:
            self.place[node] = len(self.steps)
            self.steps.append(node)

    def _last_use(self, node: fx.Node) -> int:
        return max((self.place[user] for user in node.users), default=-1)

    def crossing(self, boundary: int) -> list[fx.Node]:
        """The tensors that steps before `boundary` make and later ones need, in graph order."""
        return [node for node in self.graph.nodes if self._crosses(node, boundary)]

    def _crosses(self, node: fx.Node, boundary: int) -> bool:
        is_tensor = node not in self.values and not is_state(node)
        return is_tensor and self.place[node] < boundary <= self.last_use[node]

    @cached_property
    def blocked(self) -> dict[int, str]:
        """Boundaries where the model cannot be cut, with the reason."""
        return {
            **self._blocked_by_values(),
            **self._blocked_by_writes(),
            **self._blocked_by_state(),
        }

    def _blocked_by_values(self) -> dict[int, str]:
        names = self.qualified_names
        found: dict[int, list[str]] = {}
        for node in self.graph.nodes:
            if node not in self.values:
                continue
            # A size can be worked out again while one of its tensors still crosses; from there on
            # nobody later could.
            known = min((self.last_use[r] for r in self._roots(node)), default=len(self.steps))
            for boundary in range(max(known, self.place[node]) + 1, self.last_use[node] + 1):
                found.setdefault(boundary, []).append(names[node])
        return {
            boundary: f"needs {', '.join(values)}: sizes of tensors that do not cross there"
            for boundary, values in found.items()
        }

    def _roots(self, value: fx.Node) -> set[fx.Node]:
        roots: set[fx.Node] = set()
        for node in value.all_input_nodes:
            roots |= self._roots(node) if node in self.values else {node}
        return {node for node in roots if not is_state(node)}

    def _blocked_by_writes(self) -> dict[int, str]:
        """Copies arrive apart: a write after the boundary would reach one of several views."""
        reasons: dict[int, str] = {}
        for writer, sharing in shared_memory(self.graph, self._model).items():
            # With only one of them made before the boundary, nothing is shared across it.
            second = sorted(self.place[node] for node in sharing)[1]
            for boundary in range(second + 1, self.place[writer] + 1):
                crossing = [n for n in sharing if self._crosses(n, boundary)]
                # One alone may cross: the write reaches all that is left of that memory.
                if len(crossing) > 1:
                    names = ", ".join(self.qualified_names[node] for node in crossing)
                    reasons[boundary] = (
                        f"sends {names} apart, which share memory that "
                        f"{self.qualified_names[writer]} overwrites"
                    )
        return reasons

    def _blocked_by_state(self) -> dict[int, str]:
        # A parameter may be in several stages, which sum its gradients; nobody sums buffers.
        buffers = {id(buffer) for buffer in self._model.buffers()}
        names = {k: found for k, found in names_by_id(self._model).items() if k in buffers}
        return {
            boundary: f"puts {' = '.join(names[key])} into two stages"
            for key, used in self.uses_of_state().items()
            if key in names and used and key not in self.constants
            for boundary in range(min(used) + 1, max(used) + 1)
        }

    @cached_property
    def untold(self) -> set[fx.Node]:
        """Objects of a class, results of a user's module that is recorded whole, and parts of them.

        No graph tells what these are: a tensor, a dict, an object of the user's.
        """
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "call_module":
                is_untold = not _gives_tensors(self._model.get_submodule(str(node.target)))
            elif node.target in (getattr, operator.getitem):
                is_untold = node.all_input_nodes[0] in found
            else:
                is_untold = isinstance(node.target, type)
            found.update([node] if is_untold else [])
        return found

    def shared_bytes(self, boundary: int) -> list[int]:
        """The size of each parameter that steps before and after `boundary` use, bytes."""
        return [size for first, last, size in self._spans if first < boundary <= last]

    @cached_property
    def _spans(self) -> list[tuple[int, int, int]]:
        """The first and last step that use a parameter, of those that several do; its bytes."""
        sizes = {id(p): p.numel() * p.element_size() for p in self._model.parameters()}
        return [
            (min(used), max(used), sizes[key])
            for key, used in self.uses_of_state().items()
            if key in sizes and len(set(used)) > 1
        ]

    @cached_property
    def constants(self) -> set[int]:
        """Identities of the buffers that several stages may hold: unsaved, and only read."""
        modules = self._model.modules()
        unsaved = {id(m._buffers[name]) for m in modules for name in m._non_persistent_buffers_set}
        calls = [n for n in self.graph.nodes if n.op == "call_module"]
        inside = {
            id(t) for n in calls for t in tensors_of(self._model.get_submodule(str(n.target)))
        }
        state = dict(named_state(self._model))
        written = {
            id(state[str(node.target)])
            for sharing in shared_memory(self.graph, self._model).values()
            for node in sharing
            if is_state(node) and node.target in state
        }
        # Modules that hold such a buffer may write to it in ways that no graph shows.
        return unsaved - inside - written

    def uses_of_state(self) -> dict[int, list[int]]:
        """The steps that use each parameter and buffer, by its identity."""
        state = dict(named_state(self._model))
        uses: dict[int, list[int]] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                for tensor in tensors_of(self._model.get_submodule(str(node.target))):
                    uses.setdefault(id(tensor), []).append(self.place[node])
            elif is_state(node) and node.target in state:
                key = id(state[str(node.target)])
                uses.setdefault(key, []).extend(self._places_of_use(node))
        return uses

    def _places_of_use(self, node: fx.Node) -> list[int]:
        """Steps that need `node` itself or a size of it."""
        return [
            place
            for user in node.users
            for place in (self._places_of_use(user) if user in self.values else [self.place[user]])
        ]

    def step_costs(self) -> list[int]:
        """Bytes of the parameters that each step is the first to use."""
        sizes = {id(p): p.numel() * p.element_size() for p in self._model.parameters()}
        costs = [0] * len(self.steps)
        for key, used in self.uses_of_state().items():
            if not used:
                continue
            # State that only the output uses counts for the last step.
            costs[max(0, min(min(used), len(costs) - 1))] += sizes.get(key, 0)
        return costs

    @cached_property
    def qualified_names(self) -> dict[fx.Node, str]:
        """A name per operation that leads with the module it belongs to: `layer1.0.add`."""
        counts: dict[str, int] = {}
        names: dict[fx.Node, str] = {}
        for node in self.graph.nodes:
            base = _base_name(node)
            counts[base] = counts.get(base, -1) + 1
            names[node] = f"{base}_{counts[base]}" if counts[base] else base
        return names

    def boundaries(self) -> dict[str, int]:
        """Every name that means "a stage begins here", with the boundary; outermost name first."""
        first: dict[str, int] = {}
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr", "output"):
                continue
            boundary = self._next_step(node)
            # From the outermost module in: the first operation of a module gives it its boundary.
            for name in (*_module_path(node), self.qualified_names[node]):
                first.setdefault(name, boundary)
        return first

    def node_names(self) -> dict[str, int]:
        """The graph's own names of its nodes, with the boundary."""
        return {node.name: self._next_step(node) for node in self.graph.nodes}

    def _next_step(self, node: fx.Node) -> int:
        is_step = self.place[node] >= 0 and self.steps_at(self.place[node]) is node
        return self.place[node] if is_step else self._steps_before[node]

    def steps_at(self, place: int) -> fx.Node | None:
        """The step at `place`; None for the output's."""
        return self.steps[place] if place < len(self.steps) else None

    @cached_property
    def _steps_before(self) -> dict[fx.Node, int]:
        is_step = set(self.steps)
        counts: dict[fx.Node, int] = {}
        count = 0
        for node in self.graph.nodes:
            counts[node] = count
            count += node in is_step
        return counts


def is_value(node: fx.Node, values: Iterable[fx.Node]) -> bool:
    """Whether `node` is a number, a size or nothing, rather than a tensor.

    Args:
        node: any node.
        values: the nodes before it of which that is known.
    """
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    if node.op != "call_function":
        return False
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    if node.target is torch._assert:
        return True
    # Arithmetic counts as plain only with plain operands: of tensors it is a step.
    is_plain = getattr(node.target, "__module__", None) in _PLAIN_MODULES
    return is_plain and all(n in values for n in node.all_input_nodes)


def _is_item(node: fx.Node) -> bool:
    # One of several results, as of chunk or attention: it stays with what made them.
    if node.target is not operator.getitem or not isinstance(node.args[1], int):
        return False
    return not any(is_state(source) for source in node.all_input_nodes)


def _gives_tensors(module: nn.Module) -> bool:
    """Whether it is an operation of torch's or torchvision's."""
    origins = [cls.__module__ for cls in type(module).__mro__ if cls is not nn.Module]
    return any(origin.startswith(_OF_OPERATIONS) for origin in origins)


def _module_path(node: fx.Node) -> list[str]:
    stack = node.meta.get("nn_module_stack") or {}
    return [path for path, _ in stack.values()]


def _base_name(node: fx.Node) -> str:
    if node.op == "call_module":
        return str(node.target)
    own = re.sub(r"_\d+$", "", node.name)
    path = _module_path(node)
    return f"{path[-1]}.{own}" if path else own
