"""One stage of a model that was cut: its own graph per mode over the model's own submodules."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from launcher.errors import ConfigError

Forward = Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePart:
    """What a stage does in one mode."""

    graph: fx.Graph
    outputs: tuple[str, ...]
    """Names of the tensors it hands on; empty in the last stage."""


class Stage(nn.Module):
    """A consecutive part of a model; parameters and buffers keep the names of the model.

    Called with the tensors that cross the boundary before it, it returns a tuple of those that
    cross the one behind it; the last stage returns what the model returns. How many cross may
    depend on the mode, as with auxiliary outputs that exist in training only.
    """

    def __init__(self) -> None:
        super().__init__()
        self._forwards: dict[bool, Forward] = {}
        self._outputs: dict[bool, tuple[str, ...]] = {}

    def set_part(self, part: StagePart, *, training: bool) -> None:
        """Sets what the stage does in one mode; its submodules must be there."""
        # fx makes a class per graph, whose forward looks submodules up by name on each call: here
        # it acts on this module, so that a replaced submodule is the one that runs.
        self._forwards[training] = type(fx.GraphModule(self, part.graph)).forward
        self._outputs[training] = part.outputs

    def forward(self, *inputs: Tensor) -> Any:  # noqa: ANN401 - what the model returns
        """The outputs of this stage, see the class."""
        results = self._forwards[self.training](self, *inputs)
        names = self._outputs[self.training]
        for name, result in zip(names, results, strict=False):
            if not isinstance(result, Tensor):
                raise ConfigError(
                    f"the cut sends {name!r} on, which is no tensor but "
                    f"{type(result).__name__}; cut before or behind the operations that use it"
                )
        return results


def attach(root: nn.Module, path: str, item: object, *, persistent: bool = True) -> None:
    """Puts a module, parameter or buffer under `root` at the path it has in the model."""
    owner, _, name = path.rpartition(".")
    for part in owner.split(".") if owner else ():
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


def outermost(paths: Iterable[str]) -> list[str]:
    """The paths that lie under no other of them, in order of appearance."""
    unique = list(dict.fromkeys(paths))
    known = set(unique)
    return [path for path in unique if not any(p in known for p in _above(path))]


def _above(path: str) -> Sequence[str]:
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]
