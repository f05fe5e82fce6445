"""Where a module's parameters and buffers are."""

from __future__ import annotations

import torch
from torch import nn

from bundlerun.workers.values.module_tensors import copied_buffers, tensor_places


def test_what_lies_in_a_buffers_memory_is_copied_also_where_the_buffer_was_replaced() -> None:
    module = nn.BatchNorm1d(4)
    places = tensor_places(module)
    module.running_mean = torch.ones(4)  # as a forward may do
    fresh = torch.ones(4)
    trained = module.weight * 2
    assert module.running_var is not None
    given = [module.running_mean, fresh, trained, module.running_var[1:], module.weight]
    found = copied_buffers(given, places)
    assert [one is other for one, other in zip(found, given, strict=True)] == [
        False, True, True, False, True,
    ]  # fmt: skip
    module.running_mean.fill_(9)
    module.running_var.fill_(9)
    assert [t.tolist() for t in (found[0], found[3])] == [[1] * 4, [1] * 3]
