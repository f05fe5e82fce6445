"""Runs a model without leaving a trace in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from workers.module_tensors import limited_embeddings, may_be_written, tensor_places

_HOLDERS = (dict, list, set, deque)


@contextmanager
def rolled_back(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Puts back attributes, buffers, gradients, modes and hooks of all modules under `roots`.

    Of parameters that are trained there is no copy: a forward that writes these, other than an
    embedding with a largest norm, is not undone.
    """
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    attributes = [(vars(module), dict(vars(module))) for module in modules]
    values = [value for _, kept in attributes for value in kept.values()]
    holders = [(v, v.copy() if v else ()) for v in values if isinstance(v, _HOLDERS)]
    parameters = [(p, p.grad, p.requires_grad) for root in roots for p in root.parameters()]
    written = [*_written(roots), *(value for value in values if isinstance(value, Tensor))]
    copies = [(tensor, tensor.detach().clone()) for tensor in written]
    try:
        yield
    finally:
        for now, before in [*attributes, *holders]:
            _refill(now, before)
        for parameter, gradient, requires_grad in parameters:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)
        for tensor, before_tensor in copies:
            if tensor.shape != before_tensor.shape:
                tensor.data = before_tensor
            elif not torch.equal(tensor, before_tensor):
                tensor.data.copy_(before_tensor)


def _written(roots: Sequence[nn.Module]) -> list[Tensor]:
    """What a forward may write."""
    found: dict[int, Tensor] = {}
    for root in roots:
        limited = limited_embeddings(root)
        for place in tensor_places(root):
            if may_be_written(place, limited):
                found[id(place.tensor)] = place.tensor
    return list(found.values())


def _refill(now: Any, before: Any) -> None:  # noqa: ANN401 - any holder
    if not now and not before:
        return  # most hooks
    now.clear()
    if isinstance(now, (dict, set)):
        now.update(before)
    else:
        now.extend(before)
