"""What arrives has the strides of what was sent, and only gaps and overlaps cost a copy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bundlerun.workers.pipeline.message import (
    TensorSpec,
    as_it_lies,
    packed,
    restore_strides,
    specs_of,
    unpacked,
)
from bundlerun.workers.values.strides import with_strides


def carried(tensor: Tensor) -> Tensor:
    """What a receiver makes of a message, through a transport that sends row-major memory."""
    (spec,) = specs_of([tensor])
    sent = as_it_lies(tensor, spec).contiguous()
    assert sent.numel() == torch.Size(spec.in_memory.shape).numel()
    found = torch.empty(spec.in_memory.shape, dtype=spec.dtype).copy_(sent)
    restore_strides(found, spec)
    return found


def numbered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(float(torch.Size(shape).numel())).reshape(shape)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), shape=st.lists(st.integers(0, 3), max_size=5).map(tuple))
def test_any_order_of_dimensions_is_kept(data: st.DataObject, shape: tuple[int, ...]) -> None:
    order = data.draw(st.permutations(range(len(shape))))
    tensor = numbered(shape).permute(order)
    found = carried(tensor)
    assert torch.equal(found, tensor)
    assert specs_of([found]) == specs_of([tensor])
    assert found.stride() == tensor.stride() or not tensor.numel()


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1)])
def test_channels_last_is_sent_without_a_copy(shape: tuple[int, ...]) -> None:
    tensor = numbered(shape).to(memory_format=torch.channels_last)
    (spec,) = specs_of([tensor])
    assert as_it_lies(tensor, spec).contiguous().data_ptr() == tensor.data_ptr()
    assert carried(tensor).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "tensor",
    [numbered((4, 6))[:, ::2], numbered((3, 1)).expand(3, 4), numbered((6, 4))[1:4, :2]],
    ids=["every other", "expanded", "a corner"],
)
def test_what_has_gaps_or_overlaps_arrives_row_major(tensor: Tensor) -> None:
    found = carried(tensor)
    assert torch.equal(found, tensor)
    assert found.is_contiguous()


def test_a_part_that_fills_its_memory_is_taken_from_where_it_begins() -> None:
    tensor = numbered((3, 4, 5))[1].t()
    assert torch.equal(carried(tensor), tensor)


def test_strides_travel_with_the_spec() -> None:
    sent = specs_of([numbered((2, 3)).t().requires_grad_(), torch.tensor(1)])
    assert unpacked(packed(sent)) == (sent, None)
    assert sent[0] == TensorSpec((3, 2), torch.float32, True, (1, 3))


def test_a_tensor_that_lies_otherwise_is_brought_into_the_strides_that_were_told() -> None:
    first, later = numbered((2, 3)).t(), numbered((3, 2))
    (told,) = specs_of([first])
    flat = as_it_lies(later, told)
    restored = flat.clone()
    restore_strides(restored, told)
    assert torch.equal(restored, later)
    assert with_strides(later, (1, 3)).stride() == (1, 3)
    assert with_strides(first, (1, 3)) is first
