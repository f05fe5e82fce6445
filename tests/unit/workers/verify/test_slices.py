from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from bundlerun.workers.verify.slices import (
    NUM_NUMBERS,
    PRIME,
    Checksum,
    Entry,
    Kind,
    bytes_of,
    cut_into_slices,
)

CPU = torch.device("cpu")


def entry(name: str, tensor: Tensor) -> Entry:
    return Entry(name=name, kind=Kind.PARAMETER, find=lambda: tensor)


@given(
    st.lists(st.integers(0, 300_000), min_size=1, max_size=12),
    st.integers(1, 60),
    st.sampled_from([torch.uint8, torch.float16, torch.float32, torch.float64]),
)
def test_the_slices_have_every_byte_once_and_are_not_more_than_asked_for(
    sizes: list[int], most: int, dtype: torch.dtype
) -> None:
    tensors = [torch.empty(size, dtype=dtype) for size in sizes]
    slices = cut_into_slices([entry(str(i), t) for i, t in enumerate(tensors)], most)
    assert len(slices) <= most
    seen = [0] * len(tensors)
    for part in (part for each in slices for part in each):
        index = int(part.entry.name)
        assert part.start == seen[index]  # in order, and without a gap
        assert part.start % 8 == 0
        seen[index] = part.end
    assert seen == [t.numel() * t.element_size() for t in tensors]


def test_a_large_state_is_cut_into_as_many_slices_as_there_are_steps() -> None:
    large = [entry(str(i), torch.empty(3_000_000)) for i in range(4)]
    found = cut_into_slices(large, 40)
    assert len(found) == 40
    lengths = {sum(part.end - part.start for part in each) for each in found}
    assert max(lengths) - min(lengths) < 4096


def test_a_small_state_is_looked_at_in_one_step() -> None:
    small = [entry(str(i), torch.empty(100)) for i in range(6)]
    assert [len(each) for each in cut_into_slices(small, 40)] == [6]


def numbers(tensor: Tensor) -> list[int]:
    return [int(number) for number in Checksum(CPU).of_bytes([bytes_of(tensor)])]


@pytest.mark.parametrize("size", [1, 7, 512, 1024, 5000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64, torch.int64])
def test_every_bit_counts(size: int, dtype: torch.dtype) -> None:
    tensor = torch.arange(size).to(dtype)
    before = numbers(tensor)
    assert len(before) == NUM_NUMBERS
    assert all(0 <= number < PRIME for number in before)
    flat = tensor.view(torch.uint8)
    for place in {0, len(flat) // 2, len(flat) - 1}:
        for bit in range(8):
            flat[place] ^= 1 << bit
            assert numbers(tensor) != before
            flat[place] ^= 1 << bit
    assert numbers(tensor) == before


def test_tensors_that_change_places_count() -> None:
    one, other = torch.arange(600.0), torch.arange(600.0) + 1
    checksum = Checksum(CPU)
    first = checksum.of_bytes([bytes_of(one), bytes_of(other)])
    assert not torch.equal(first, checksum.of_bytes([bytes_of(other), bytes_of(one)]))


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.tensor(True),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(40.0)[3:-2:2],
        torch.view_as_complex(torch.arange(8.0).view(4, 2)),
        torch.arange(9000, dtype=torch.uint8)[1:],
    ],
)
def test_any_tensor_has_bytes(tensor: Tensor) -> None:
    found = bytes_of(tensor)
    assert found.dtype == torch.uint8
    assert len(found) == tensor.numel() * tensor.element_size()
    assert numbers(tensor) == numbers(tensor.clone())
