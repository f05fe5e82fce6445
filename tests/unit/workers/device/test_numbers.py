"""Numbers that go to the device and come back: how many copies, and where they wait."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from bundlerun.workers.device import numbers

WIDE = torch.tensor([1 / 3, 2.0**52 + 1], dtype=torch.float64)


class Watched:
    """Notes what is done with memory that a GPU would copy, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.done: list[str] = []
        monkeypatch.setattr(numbers, "is_on_gpu", lambda tensor: True)
        monkeypatch.setattr(numbers, "mark", self._mark)
        monkeypatch.setattr(numbers, "pinned", self._pinned)

    def _mark(self, device: torch.device) -> Watched:
        self.done.append("mark")
        return self

    def synchronize(self) -> None:
        self.done.append("wait")

    def _pinned(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        self.done.append("pinned")
        return torch.empty(shape, dtype=dtype)


def test_numbers_of_several_tensors_of_any_dtype_are_exact() -> None:
    none, counts = torch.zeros(0), torch.tensor([3.0], dtype=torch.bfloat16)
    assert numbers.read([WIDE, none, counts]) == [[1 / 3, 2.0**52 + 1], [], [3.0]]
    assert numbers.read([]) == []


def test_one_tensor_alone_is_not_put_together_with_anything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "cat", None)
    assert numbers.read([torch.zeros(0), WIDE]) == [[], [1 / 3, 2.0**52 + 1]]


def test_a_gpu_is_waited_for_once_after_copies_to_pinned_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    watched = Watched(monkeypatch)
    reading = numbers.start_read([WIDE, torch.ones(1), WIDE[:0]])
    assert watched.done == ["pinned", "pinned", "mark"]
    assert reading() == [[1 / 3, 2.0**52 + 1], [1.0], []]
    assert watched.done == ["pinned", "pinned", "mark", "wait"]


def test_numbers_are_written_to_a_gpu_from_pinned_memory_without_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu = torch.zeros(2, dtype=torch.float64)
    numbers.write(on_cpu, [1 / 3, 1.0])
    assert on_cpu.tolist() == [1 / 3, 1.0]
    watched = Watched(monkeypatch)
    target = torch.zeros(2, dtype=torch.bfloat16)
    numbers.write(target, [1.0, 0.0])
    assert target.tolist() == [1.0, 0.0]
    assert watched.done == ["pinned"]
