"""Tensors without numbers: they know shape, type and device, and raise where they are used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd.graph import Node


class GhostUsed(Exception):
    """An operation was given a tensor of a part that this stage does not compute."""


class Ghost(Tensor):
    """What stands for a tensor that another stage computes."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def of(cls, tensor: Tensor) -> Ghost:
        """One that looks like `tensor`."""
        made: Ghost = torch.Tensor._make_wrapper_subclass(
            cls,
            tensor.size(),
            strides=tensor.stride(),
            storage_offset=tensor.storage_offset(),
            dtype=tensor.dtype,
            layout=tensor.layout,
            device=tensor.device,
            requires_grad=tensor.requires_grad,
        )
        return made

    @classmethod
    def made(
        cls, shape: Sequence[int], dtype: torch.dtype, device: torch.device, requires_grad: bool
    ) -> Ghost:
        """One of a shape and type."""
        ghost: Ghost = torch.Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=device, requires_grad=requires_grad
        )
        return ghost

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - any result
        """Raises GhostUsed; only giving up the graph is no operation on numbers."""
        if func is torch.ops.aten.detach.default:
            return Ghost.of(args[0])
        raise GhostUsed(str(func))

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"Ghost({list(self.size())}, {self.dtype})"


class GhostNode:
    """What stands for the place in autograd's graph of a tensor that another stage computes.

    It takes hooks, as those of a module for its backward, and forgets them: that stage has them.
    """

    def __init__(self, node: Node) -> None:
        self._name = node.name()

    def name(self) -> str:
        """As that of the place."""
        return self._name

    def register_hook(self, hook: object) -> None:
        """Forgets it."""

    def register_prehook(self, hook: object) -> None:
        """Forgets it."""


def fake_mode() -> FakeTensorMode:
    """A mode of fakes that takes real tensors as inputs, too."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def fake_like(mode: FakeTensorMode, tensor: Tensor, device: torch.device) -> FakeTensor:
    """A fake that looks like `tensor`, on `device`."""
    with mode:
        made = torch.empty_strided(
            tensor.size(),
            tensor.stride(),
            dtype=tensor.dtype,
            device=device,
            requires_grad=tensor.requires_grad,
        )
    assert isinstance(made, FakeTensor)
    return made
