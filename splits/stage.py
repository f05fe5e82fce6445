"""One stage of a model that was cut: its own graphs over the model's own submodules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, Self, cast

import torch
from torch import Tensor, fx, nn
from torch.nn import Parameter
from torch.utils._pytree import tree_map_only

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.modes import Modes, PartMode
from bundlerun.splits.state import find_attribute

_CONSTANTS = (type(None), bool, int, float, str)
Forward = Callable[..., Any]
"""From the tensors that reach a chunk to what it hands on."""


class ChunkedStage(Protocol):
    """A stage of several chunks, which are apart in the model."""

    def __call__(self, *inputs: Tensor, chunk: int) -> object:
        """What one of its chunks makes of the tensors that reach it."""

    def chunk_modules(self, chunk: int) -> Iterable[nn.Module | Parameter]:
        """What one of its chunks uses."""


class _Received(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def overwritable(received: object) -> object:
    """The tensors, in the same memory, as results of autograd's; they may be nested.

    What a stage receives are leaves, which in-place operations may not change.
    """
    return tree_map_only(Tensor, _Received.apply, received)


def class_lost(value: object) -> str:
    """The class of something in `value` that a link does not keep; nothing: it keeps all.

    Tensors, numbers, texts, and dicts, tuples, named tuples and lists of them arrive as they are. A
    subclass of a dict, such as an output of transformers, arrives as a dict, other objects not.
    """
    kind = type(value)
    if isinstance(value, Tensor) or kind in _CONSTANTS:
        return ""
    if isinstance(value, tuple) and (kind is tuple or hasattr(kind, "_fields")):
        return next(filter(None, map(class_lost, value)), "")
    if isinstance(value, (dict, list)) and kind in (dict, list):
        items = value.values() if isinstance(value, dict) else value
        return next(filter(None, map(class_lost, items)), "")
    return kind.__name__


def chunk_forwards(stage: nn.Module, chunks_per_stage: int) -> list[Forward]:
    """What each chunk of a stage computes."""
    if chunks_per_stage == 1:
        return [stage]
    return [partial(stage, chunk=own) for own in range(chunks_per_stage)]


def chunk_parameters(stage: nn.Module, chunks_per_stage: int) -> list[list[Parameter]]:
    """All parameters of a stage, each once: in the first chunk that uses it.

    In training the last backward of a chunk comes after those of the chunks after it: then the
    gradients of its parameters are final.
    """
    if chunks_per_stage == 1:
        return [list(stage.parameters())]
    # A dict for a set in order: all ranks have to list the parameters alike.
    left = dict.fromkeys(stage.parameters())
    chunks: list[list[Parameter]] = []
    for chunk in range(chunks_per_stage):
        used = cast(ChunkedStage, stage).chunk_modules(chunk)
        own = [p for m in used for p in ([m] if isinstance(m, Parameter) else m.parameters())]
        chunks.append([p for p in dict.fromkeys(own) if p in left])
        left = {p: None for p in left if p not in set(chunks[-1])}
    # What no chunk uses goes to the first, whose backward is the last.
    return [[*left, *chunks[0]], *chunks[1:]]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePart:
    """What a chunk of a stage does in one mode."""

    graph: fx.Graph
    outputs: tuple[str, ...]
    """Names of the tensors it hands on; empty at the model's end."""


class Stage(nn.Module):
    """A consecutive part of a model; parameters and buffers keep the names of the model.

    Called with the tensors that cross the boundary before it, it returns a tuple of those that
    cross the one after it; the last stage returns what the model returns. How many cross may
    depend on the mode, as with auxiliary outputs that exist in training only.

    A stage of several chunks is several such parts, which are apart in the model.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forwards: dict[tuple[int, bool], Forward] = {}
        self._outputs: dict[tuple[int, bool], tuple[str, ...]] = {}
        self._paths: dict[int, list[str]] = {}
        self._modes: dict[bool, PartMode] = {}

    def set_modes(self, modes: Modes) -> None:
        """Sets what the model's own `train` does; its submodules must be there."""
        self._modes = {mode: found.within(self) for mode, found in modes.items()}

    def train(self, mode: bool = True) -> Self:
        """Goes into a mode as the model itself does, what it freezes included."""
        super().train(mode)
        if mode in self._modes:
            self._modes[mode].apply()
        return self

    def set_part(self, part: StagePart, *, training: bool, chunk: int = 0) -> None:
        """Sets what a chunk does in one mode; its submodules must be there."""
        # fx makes a class per graph, whose forward looks submodules up by name on each call: here
        # it acts on this module, so that a replaced submodule is the one that runs. The class is
        # made without submodules: one called `code` or `graph` would hide what fx needs.
        made = fx.GraphModule({}, fx.Graph())
        made.graph = part.graph
        self._forwards[chunk, training] = type(made).forward
        self._outputs[chunk, training] = part.outputs
        self._paths.setdefault(chunk, []).extend(state_paths(part.graph))

    def chunk_modules(self, chunk: int) -> Iterable[nn.Module | Parameter]:
        """The modules and parameters that one chunk uses."""
        found = [find_attribute(self, path) for path in self._paths[chunk]]
        return [item for item in found if isinstance(item, (nn.Module, Parameter))]

    def forward(self, *inputs: Tensor, chunk: int = 0) -> Any:  # noqa: ANN401 - the model's output
        """The outputs of one chunk, see the class.

        Raises:
            ConfigError: what the cut sends on is no tensor, nor a dict or tuple of them.
        """
        results = self._forwards[chunk, self.training](self, *inputs)
        names = self._outputs[chunk, self.training]
        for name, result in zip(names, results, strict=False):
            # What a dict or tuple holds is looked at when it is sent.
            if not isinstance(result, (Tensor, dict, tuple, list)):
                raise ConfigError(
                    f"the cut sends {name!r} on, which is no tensor but "
                    f"{type(result).__name__}; cut before or after the operations that use it"
                )
        return results


def attach(root: nn.Module, path: str, item: object, *, persistent: bool = True) -> None:
    """Puts a module, parameter or buffer under `root` at the path it has in the model."""
    owner, _, name = path.rpartition(".")
    for part in owner.split(".") if owner else ():
        # Empty modules on the way, so that the names are the model's.
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if isinstance(item, nn.Module):
        root.add_module(name, item)
    elif isinstance(item, nn.Parameter):
        root.register_parameter(name, item)
    elif isinstance(item, Tensor):
        root.register_buffer(name, item, persistent=persistent)
    else:
        setattr(root, name, item)


def state_paths(graph: fx.Graph) -> list[str]:
    """Paths of the modules, parameters and buffers that `graph` uses."""
    return [str(n.target) for n in graph.nodes if n.op in ("call_module", "get_attr")]


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths that are under no other of them, in order of appearance."""
    unique = list(dict.fromkeys(paths))
    known = set(unique)
    return [path for path in unique if not any(p in known for p in _above(path))]


def _above(path: str) -> Sequence[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
