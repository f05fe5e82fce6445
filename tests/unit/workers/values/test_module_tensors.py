"""Where a module keeps its tensors, and what becomes of that on another device."""

from __future__ import annotations

import torch
from torch import nn

from bundlerun.workers.values.module_tensors import copied_buffers, moved, tensor_places


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


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[2].weight = model[0].weight
    model[3].running_mean = model[1].running_mean
    return model


def test_what_is_tied_is_one_tensor_on_a_device_for_which_torch_makes_new_ones() -> None:
    meta = torch.device("meta")
    apart = tied().to(meta)
    assert apart[2].weight is not apart[0].weight, "torch ties them by itself now: `moved` may go"
    model = moved(tied(), meta)
    assert isinstance(model, nn.Sequential)
    assert model[2].weight is model[0].weight
    assert model[3].running_mean is model[1].running_mean
    assert model[2].bias is not model[0].bias
    assert {tensor.device for tensor in model.state_dict().values()} == {meta}
    assert len(list(model.parameters())) == len(list(tied().parameters()))


def test_a_tied_tensor_has_one_place() -> None:
    names = [place.name for place in tensor_places(tied())]
    assert "0.weight" in names
    assert "2.weight" not in names
