"""What each step of a graph costs: operations counted, and bytes of what it makes.

The graph runs once without numbers (on the meta device), so it costs neither memory nor much time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits.graph.flow import Flow
from bundlerun.splits.stage import chunk_forwards, class_lost
from bundlerun.splits.tracing.undo import members_kept


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphCosts:
    """Costs of one forward."""

    operations: Sequence[int]
    """Of each step of the flow: floating point operations of products and convolutions."""
    num_bytes: Mapping[fx.Node, int]
    """Of the tensors that each node makes."""
    lost: Mapping[fx.Node, str]
    """Nodes whose result would arrive at another stage as something else, and what it is."""

    def crossing_bytes(self, flow: Flow, boundary: int) -> int:
        """Bytes of what crosses a boundary."""
        return sum(self.num_bytes.get(node, 0) for node in flow.crossing(boundary))


def graph_costs(flow: Flow, model: nn.Module, inputs: Sequence[object]) -> GraphCosts:
    """What a graph of `model` costs.

    Args:
        flow: of the graph; the model is in its mode.
        model: keeps its state, and the numbers in it.
        inputs: what the model is called with; only shapes and types count.

    Raises:
        Exception: any that an operation raises which needs numbers.
    """
    counter = FlopCounterMode(display=False)
    with without_numbers(model), torch.no_grad(), counter, _BatchNormLeftOut():
        counting = _Counting(model, flow, counter)
        counting.run(*(tree_map_only(Tensor, _meta, value) for value in inputs))
    return GraphCosts(
        operations=counting.operations, num_bytes=counting.num_bytes, lost=counting.lost
    )


class _Counting(fx.Interpreter):
    def __init__(self, model: nn.Module, flow: Flow, counter: FlopCounterMode) -> None:
        super().__init__(model, graph=flow.graph, garbage_collect_values=True)
        self._flow = flow
        self._counter = counter
        self.operations = [0] * len(flow.steps)
        self.num_bytes: dict[fx.Node, int] = {}
        self.lost: dict[fx.Node, str] = {}

    def run_node(self, n: fx.Node) -> Any:  # noqa: ANN401 - any result
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        # Inputs and state are at -1 and the output after the last step: no work.
        place = self._flow.place[n]
        if 0 <= place < len(self.operations):
            self.operations[place] += self._counter.get_total_flops() - before
        self.num_bytes[n] = _bytes_of(result)
        if lost := class_lost(result):
            self.lost[n] = lost
        return result


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCosts:
    """What one stage does and sends on."""

    operations: int
    sent_bytes: int
    parameter_bytes: int


def costs_of_stages(
    stages: Sequence[nn.Module], inputs: Sequence[object], chunks_per_stage: int = 1
) -> list[StageCosts]:
    """What the stages of a model cost in one forward; arguments as for `graph_costs`.

    Args:
        chunks_per_stage: parts of the model that each stage has.

    Raises:
        Exception: any that an operation raises which needs numbers.
    """
    # In the order of the model: each chunk's output is the next one's input, on another stage.
    chunks = Chunks(len(stages), chunks_per_stage)
    operations, sent = [0] * len(stages), [0] * len(stages)
    counter = FlopCounterMode(display=False)
    with ExitStack() as stack:
        for stage in stages:
            stack.enter_context(without_numbers(stage))
        stack.enter_context(torch.no_grad())
        stack.enter_context(counter)
        stack.enter_context(_BatchNormLeftOut())
        passed: Any = tuple(tree_map_only(Tensor, _meta, value) for value in inputs)
        for chunk in range(chunks.num_chunks):
            index, before = chunks.stage_of(chunk), counter.get_total_flops()
            forward = chunk_forwards(stages[index], chunks.per_stage)[chunks.own_of(chunk)]
            passed = forward(*passed)
            operations[index] += counter.get_total_flops() - before
            sent[index] += _bytes_of(passed) if chunk < chunks.num_chunks - 1 else 0
    return [
        StageCosts(
            operations=operations[i],
            sent_bytes=sent[i],
            parameter_bytes=sum(p.numel() * p.element_size() for p in stage.parameters()),
        )
        for i, stage in enumerate(stages)
    ]


class _BatchNormLeftOut(TorchFunctionMode):
    """Does no batch norm: it counts for nothing, and takes most of the time without numbers."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - any result
        # Of the input's shape, which is all that the next operation needs.
        if func is nn.functional.batch_norm and args:
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


def _bytes_of(value: object) -> int:
    tensors = [t for t in tree_leaves(value) if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


@contextmanager
def without_numbers(model: nn.Module) -> Iterator[None]:
    """Puts tensors on the meta device into all places of the model's tensors for a while.

    Members that a forward makes or changes meanwhile, such as a table or a counter, are put back.
    """
    made: dict[int, Tensor] = {}
    saved: list[tuple[Any, str, object]] = []

    def meta(tensor: Tensor) -> Tensor:
        # One for each tensor: tied parameters stay tied.
        return made.setdefault(id(tensor), _meta(tensor))

    for module in model.modules():
        for holder in (module._parameters, module._buffers, vars(module)):
            for name, value in holder.items():
                if isinstance(value, (Tensor, list, tuple)):
                    saved.append((holder, name, value))  # kept: an id is its own while it lives
    with members_kept([model]):
        try:
            for holder, name, value in saved:
                holder[name] = tree_map_only(Tensor, meta, value)
            yield
        finally:
            for holder, name, value in saved:
                holder[name] = value


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta")
