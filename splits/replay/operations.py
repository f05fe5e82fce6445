"""Counts the floating point operations of products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


@cache
def _is_composite(func: Any) -> bool:  # noqa: ANN401 - an operator
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    return bool(func.has_kernel_for_dispatch_key(key))


class OperationCounter(TorchDispatchMode):
    """Adds up the operations of all calls while it is on.

    torch's own counter would look at modules as well, with calls that a forward does not make.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - any result
        """Does the call, and counts it."""
        kwargs = kwargs or {}
        count: Callable[..., int] | None = flop_registry.get(func._overloadpacket)
        if count is None:
            if func is torch.ops.prim.device.default or not _is_composite(func):
                return func(*args, **kwargs)
            # Counted by what it is made of.
            with self:
                return func.decompose(*args, **kwargs)
        result = func(*args, **kwargs)
        self.total += count(*args, **kwargs, out_val=result)
        return result
