"""Runs a model without leaving a trace in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bundlerun.splits.tracing.undo import members_kept, modules_under
from bundlerun.workers.values.module_tensors import (
    limited_embeddings,
    may_be_written,
    tensor_places,
)


@contextmanager
def rolled_back(roots: Sequence[nn.Module]) -> Iterator[None]:
    """Puts back attributes, buffers, gradients, modes and hooks of all modules under `roots`.

    Of parameters that are trained there is no copy: a forward that writes these, other than an
    embedding with a largest norm, is not undone.
    """
    # A stage may share modules with the whole model: each once, in order.
    modules = modules_under(roots)
    values = [value for module in modules for value in vars(module).values()]
    parameters = [(p, p.grad, p.requires_grad) for root in roots for p in root.parameters()]
    # Plain tensor attributes, too: a forward may write these in place.
    written = [*_written(roots), *(value for value in values if isinstance(value, Tensor))]
    # Without numbers (a stand-in for another stage's) there is nothing to put back.
    written = [tensor for tensor in written if not tensor.is_meta]
    copies = [(tensor, tensor.detach().clone()) for tensor in written]
    try:
        with members_kept(roots):
            yield
    finally:
        for parameter, gradient, requires_grad in parameters:
            parameter.grad = gradient
            parameter.requires_grad_(requires_grad)
        for tensor, before_tensor in copies:
            if tensor.shape != before_tensor.shape:
                # Resized in place: there is no room for the old numbers in what is there now.
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
