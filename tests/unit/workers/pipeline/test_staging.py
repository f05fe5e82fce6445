"""A slot is kept while a GPU still copies from it, and a message until it is in its slot."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bundlerun.workers.pipeline import staging
from bundlerun.workers.pipeline.staging import Staging


class Mark:
    """An event that the test lets happen."""

    def __init__(self) -> None:
        self.is_reached = False

    def query(self) -> bool:
        return self.is_reached


class Gpu:
    """Stands for the door to a GPU."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self.log: list[Any] = []

    @contextmanager
    def on_stream(self, device: torch.device, purpose: str) -> Iterator[None]:
        self.log.append(purpose)
        yield

    def stream(self, device: torch.device, purpose: str) -> Gpu:
        return self

    def wait_event(self, event: Mark) -> None:
        self.log.append(event)

    def placed(self, tensor: Tensor, device: torch.device) -> Tensor:
        return tensor.clone()

    def mark(self, device: torch.device) -> Mark:
        self.marks.append(Mark())
        return self.marks[-1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(staging, "door", made)
    return made


def test_what_is_copied_from_is_kept_until_the_copy_is_done(gpu: Gpu) -> None:
    one = Staging(torch.device("cpu"))
    slots = [torch.full((3,), float(number)) for number in range(3)]
    alive = [weakref.ref(slot) for slot in slots]
    for _ in range(2):
        found = one.copy_in([slots.pop(0)])
        assert found.done is gpu.marks[-1]
    gc.collect()
    assert [ref() is not None for ref in alive] == [True, True, True]
    gpu.marks[0].is_reached = True
    one.copy_in([slots.pop(0)])
    assert [ref() is not None for ref in alive] == [False, True, True]
    # In order: what comes after a copy that is not done is not done either.
    gpu.marks[2].is_reached = True
    one.copy_in([torch.zeros(1)])
    assert [ref() is not None for ref in alive] == [False, True, True]


def test_a_copy_into_a_slot_waits_for_what_makes_the_message(gpu: Gpu) -> None:
    ready, place = Mark(), torch.zeros(3)
    done = Staging(torch.device("cpu")).copy_into([place], [torch.ones(3)], ready)
    assert gpu.log == ["copy out", ready]
    assert done is gpu.marks[-1]
    assert (place == 1).all()
