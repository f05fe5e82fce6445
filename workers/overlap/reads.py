"""Notices that a forward is about to read a parameter, whoever's it is.

A parameter may be read by another module than its own (`nn.MultiheadAttention` reads the weight of
its `out_proj`), or by a function of the user's. So each of torch's functions that gets one is seen
before it runs; and each module that is called, with its own parameters, for code that is not
torch's.

Nothing is put on the model (I13). What neither sees, such as a read in a thread of the user's, is
noticed by autograd for most operations: it counts the writes to what it has saved for the backward.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

Read = Callable[[Tensor], None]
"""Told of a parameter that is about to be read."""


@contextmanager
def watched(awaited: Collection[int], read: Read) -> Iterator[None]:
    """In here, `read` is called before a parameter is read whose id is in `awaited`.

    Args:
        awaited: ids of parameters; may change meanwhile.
        read: called in the thread that reads.
    """

    def before(module: nn.Module, _: object) -> None:
        if awaited:
            # What a script calls inside of it, nobody sees.
            is_script = isinstance(module, torch.jit.ScriptModule)
            own = module.parameters() if is_script else module._parameters.values()
            _tell(own, awaited, read)

    hook = register_module_forward_pre_hook(before)
    try:
        with _Watch(awaited, read):
            yield
    finally:
        hook.remove()


class _Watch(TorchFunctionMode):
    def __init__(self, awaited: Collection[int], read: Read) -> None:
        super().__init__()
        self._awaited = awaited
        self._read = read

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (any output)
        """See torch."""
        if self._awaited:
            _tell(args, self._awaited, self._read)
            if kwargs:
                _tell(kwargs.values(), self._awaited, self._read)
        return func(*args, **(kwargs or {}))


def _tell(values: Iterable[Any], awaited: Collection[int], read: Read) -> None:
    for value in values:
        if id(value) in awaited:
            read(value)
        elif isinstance(value, (list, tuple)):
            _tell(value, awaited, read)
        elif isinstance(value, dict):
            _tell(value.values(), awaited, read)
