"""What was kept back elsewhere is added to a gradient, once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter

from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.short.owed import Debts, Owed, flat_of, owed_in

CPU = torch.device("cpu")


def parameter(kind: str) -> Parameter:
    match kind:
        case "channels_last":
            return Parameter(torch.zeros(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
        case "complex":
            return Parameter(torch.zeros(4, 12, dtype=torch.complex64))
        case _:
            return Parameter(torch.zeros(4, 12))


@pytest.mark.parametrize("kind", ["row_major", "channels_last", "complex"])
@pytest.mark.parametrize("has_gradient", [True, False])
def test_parts_of_several_ranks_are_added_once(kind: str, has_gradient: bool) -> None:
    owed = parameter(kind)
    others = [Parameter(torch.zeros(6)), Parameter(torch.zeros(7))]
    bucket = Bucket([others[0], owed, others[1]], 0, CPU, None)
    kept = torch.arange(bucket.flat.numel(), dtype=torch.float32)
    cut = 6 + 20  # between two ranks, in the middle of the parameter
    own, debts = torch.ones_like(owed.detach()), Debts()
    for begin, part in ((0, kept[:cut]), (cut, kept[cut:]), (0, kept)):
        debts.add([each for each in owed_in(bucket, begin, part) if each.parameter is owed])
    owed.grad = own.clone() if has_gradient else None
    assert debts.pay(bucket.parameters) == {owed}
    bucket.flat.copy_(2 * kept)
    view = dict(zip(bucket.parameters, bucket.views, strict=True))[owed]
    assert owed.grad is not None
    assert torch.equal(owed.grad, view + own if has_gradient else view)
    assert debts.pay(bucket.parameters) == set(), "nothing is paid twice"


def test_a_sparse_gradient_becomes_a_dense_one() -> None:
    table = nn.Embedding(6, 2, sparse=True)
    table(torch.tensor([1, 4])).sum().backward()
    debts = Debts()
    debts.add([Owed(table.weight, 2, torch.full((2,), 0.5))])
    debts.pay([table.weight])
    gradient = table.weight.grad
    assert isinstance(gradient, Tensor)
    assert gradient.tolist() == [[0, 0], [1.5, 1.5], [0, 0], [0, 0], [1, 1], [0, 0]]


def test_what_is_forgotten_is_not_paid() -> None:
    owed, debts = parameter("row_major"), Debts()
    debts.add([Owed(owed, 0, torch.ones(3))])
    debts.drop()
    assert debts.pay([owed]) == set()
    assert owed.grad is None


@pytest.mark.parametrize("kind", ["row_major", "channels_last", "complex"])
def test_a_whole_gradient_is_flat_as_in_a_bucket(kind: str) -> None:
    owed = parameter(kind)
    gradient = torch.randn(owed.shape, dtype=owed.dtype)
    bucket = Bucket([owed], 0, CPU, None)
    bucket.views[0].copy_(gradient)
    assert torch.equal(flat_of(gradient, owed), bucket.flat)
