from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.workers.snapshot.checksum import WINDOW_BYTES, checksum, copy_with_checksum
from bundlerun.workers.values.flat import bytes_of

NUM_BYTES = 2 * WINDOW_BYTES + 4096
GENERATOR = np.random.default_rng(0)
DATA = GENERATOR.integers(0, 256, NUM_BYTES, dtype=np.uint8)


def test_the_checksum_taken_on_the_way_is_that_of_the_memory() -> None:
    tensors = [
        torch.randn(70_000),  # longer than a window
        torch.randn(64, 3, 7, 7).to(memory_format=torch.channels_last),
        torch.tensor(3),
        torch.randn(11).to(torch.bfloat16),
        torch.empty(0),
        torch.randn(40_000, requires_grad=True),
    ]
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.numel() * tensor.element_size() // 64) * 64
    memory = np.zeros(end, dtype=np.uint8)
    found = copy_with_checksum(memory, zip(places, tensors, strict=True))
    assert found == checksum(memory)
    for place, tensor in zip(places, tensors, strict=True):
        wanted = tensor.detach().contiguous().view(-1).view(torch.uint8)
        assert torch.equal(torch.from_numpy(memory)[place : place + wanted.numel()], wanted)


@given(st.integers(0, NUM_BYTES - 1), st.integers(0, 7))
def test_a_bit_that_flips_is_noticed(place: int, bit: int) -> None:
    data = DATA.copy()
    data[place] ^= 1 << bit
    assert checksum(data) != checksum(DATA)


@given(st.integers(1, NUM_BYTES - 1))
def test_a_part_that_still_has_the_step_before_is_noticed(end: int) -> None:
    before = np.random.default_rng(1).integers(0, 256, NUM_BYTES, dtype=np.uint8)
    torn = np.concatenate([DATA[:end], before[end:]])
    assert checksum(torn) != checksum(DATA)


def test_windows_that_change_places_are_noticed() -> None:
    first, second, rest = np.split(DATA, [WINDOW_BYTES, 2 * WINDOW_BYTES])
    assert checksum(np.concatenate([second, first, rest])) != checksum(DATA)


def test_nothing_has_a_checksum_too() -> None:
    assert checksum(np.zeros(0, dtype=np.uint8)) == copy_with_checksum(
        np.zeros(0, dtype=np.uint8), [(0, torch.empty(0))]
    )


def test_bytes_are_the_tensors_own_where_they_lie_in_order() -> None:
    tensor = torch.zeros(4)
    bytes_of(tensor)[:] = 255
    assert torch.isnan(tensor).all()
