"""A copy of a model's modules that has the numbers of some of its tensors only.

Modules, attributes, functions that refer to modules, and references between them are copied;
parameters and buffers are the model's own objects, or stand-ins on the meta device for those of
other stages. Stand-ins are attributes (so that the forward finds them), but no parameters or
buffers: nothing counts, moves or saves them. While the forward runs, they are: it may ask for its
first parameter.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, ItemsView, Iterator, ValuesView
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.replay.closures import Closures
from bundlerun.splits.replay.state import HIDDEN, held


class Switch:
    """Whether a forward is running."""

    is_on = False

    @contextmanager
    def on(self) -> Iterator[None]:
        """While a forward runs."""
        before, self.is_on = self.is_on, True
        try:
            yield
        finally:
            self.is_on = before


class _Members(dict[str, Any]):
    """The parameters or buffers of a module that are this stage's; in a forward all of them."""

    def __init__(self, own: dict[str, Any], others: dict[str, Any], switch: Switch) -> None:
        super().__init__(own)
        self._others = others
        self._switch = switch

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Names and tensors."""
        return (self._others | dict(self)).items() if self._switch.is_on else super().items()

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Tensors."""
        return (self._others | dict(self)).values() if self._switch.is_on else super().values()


def replica_of(model: nn.Module, own: Collection[int], switch: Switch) -> nn.Module:
    """The copy.

    Args:
        model: any.
        own: identities of the tensors whose numbers it has.
        switch: is on while the copy's forward runs.

    Raises:
        ConfigError: the model cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in (*module._parameters.values(), *module._buffers.values()):
            if tensor is not None:
                memo[id(tensor)] = tensor if id(tensor) in own else _stand_in(tensor)
    for module in model.modules():
        for value in held(vars(module)):
            # Tensors that are attributes may be results, which cannot be copied; nobody writes them
            # as long as the stages of one process take turns.
            if isinstance(value, (Tensor, torch.Generator)):
                memo.setdefault(id(value), value)
    kept = list(memo.values())  # an id is its own while it lives
    closures = Closures(model, memo)
    try:
        made: nn.Module = copy.deepcopy(model, memo)
        closures.settle(made)
    except Exception as exc:
        raise ConfigError(
            f"cannot cut {type(model).__name__} by replay: its modules cannot be copied "
            f"({type(exc).__name__}: {exc}); keep what cannot be copied out of its attributes"
        ) from exc
    del kept
    for module in made.modules():
        _hide(module, own, switch)
    return made


def _stand_in(tensor: Tensor) -> Tensor:
    made = torch.empty_like(tensor, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(made, tensor.requires_grad)
    return made


def _hide(module: nn.Module, own: Collection[int], switch: Switch) -> None:
    hidden: dict[str, Tensor] = {}
    for name in ("_parameters", "_buffers"):
        holder: dict[str, Any] = vars(module)[name]
        others = {k: t for k, t in holder.items() if t is not None and id(t) not in own}
        if others:
            left = {k: t for k, t in holder.items() if k not in others}
            vars(module)[name] = _Members(left, others, switch)
            vars(module).update(others)
            hidden |= others
    if hidden:
        vars(module)[HIDDEN] = hidden


def convert_stand_ins(replica: nn.Module, convert: Callable[[Tensor], Tensor]) -> None:
    """Gives stand-ins the type that `convert` gives to real tensors of theirs."""
    for module in replica.modules():
        for tensor in vars(module).get(HIDDEN, {}).values():
            dtype = convert(torch.empty(0, dtype=tensor.dtype)).dtype
            if dtype != tensor.dtype:
                tensor.data = tensor.data.to(dtype)
