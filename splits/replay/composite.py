"""Calls that torch shows to no function mode, made visible as one call each.

`autograd.Function.apply` and `torch.vmap` do their work below what a mode sees. While one of our
modes is on, each call of theirs is one numbered call, and what happens inside has no numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._functorch import apis
from torch.overrides import (
    TorchFunctionMode,
    _get_current_function_mode_stack,
    _pop_mode,
    _push_mode,
)

from bundlerun.splits.tracing.beside import KEEPS_INPUTS

_vmap: Any = apis


class Watch(TorchFunctionMode, ABC):
    """A mode that counts the calls of a forward."""

    is_noting = False
    """Whether calls give what was noted, and nothing is done."""

    @abstractmethod
    def whole(
        self, func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:  # noqa: ANN401 - any result
        """One call of `func`, whatever it does inside."""


def is_noting() -> bool:
    """Whether the forward is in a part of the model that another chunk does."""
    watch = _watching()
    return watch is not None and watch.is_noting


def _watching() -> Watch | None:
    # A mode is off while it handles a call, so nothing inside one comes here.
    stack = _get_current_function_mode_stack()
    return next((mode for mode in reversed(stack) if isinstance(mode, Watch)), None)


@contextmanager
def composites_shown() -> Iterator[None]:
    """While it lasts, such calls come to `Watch.whole`; other threads see no difference."""
    apply = vars(torch.autograd.Function)["apply"]
    vmap = _vmap.vmap_impl

    def shown_apply(cls: type, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        own = apply.__get__(None, cls)
        watch = _watching()
        if watch is None:
            return own(*args, **kwargs)
        if cls is KEEPS_INPUTS:
            # No call of the forward's; in the backward it gives what it has been given here.
            with unseen(watch):
                return own(*args, **kwargs)
        return watch.whole(own, args, kwargs)

    def shown_vmap(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        watch = _watching()
        return vmap(*args, **kwargs) if watch is None else watch.whole(vmap, args, kwargs)

    torch.autograd.Function.apply = classmethod(shown_apply)
    _vmap.vmap_impl = shown_vmap
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply
        _vmap.vmap_impl = vmap


@contextmanager
def unseen(watch: Watch) -> Iterator[None]:
    """For calls that are not the forward's, where a mode is on: it and those above it are not."""
    above: list[TorchFunctionMode] = []
    while not above or above[-1] is not watch:
        above.append(_pop_mode())
    try:
        yield
    finally:
        for mode in reversed(above):
            _push_mode(mode)


@contextmanager
def seen_again(watch: Watch) -> Iterator[None]:
    """A call of the forward's inside of `unseen`."""
    with watch:
        yield
