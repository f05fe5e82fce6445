"""What is asked of the driver where memory is shared, by a driver that only notes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bundlerun.workers.device import shared_memory
from bundlerun.workers.device.shared_memory import (
    CannotShareError,
    event_of,
    memory_handle,
    memory_of,
    shared_event,
)

CPU = torch.device("cpu")
NUM_BYTES = 256


class Driver:
    """Stands for CUDA's; `memory` is what it has given to torch, a part of which is shared.

    Args:
        memory: flat bytes.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self._memory = memory
        self.refuses = ""
        self.num_opened = 0

    def cuMemGetAddressRange_v2(self, base: Any, size: Any, address: Any) -> int:
        start = self._memory.data_ptr()
        assert start <= address.value < start + NUM_BYTES
        base._obj.value, size._obj.value = start, NUM_BYTES
        return 0

    def cuIpcGetMemHandle(self, handle: Any, base: Any) -> int:
        assert base.value == self._memory.data_ptr()
        handle._obj.data[:] = range(64)
        return 201 if self.refuses == "get" else 0

    def cuIpcOpenMemHandle_v2(self, found: Any, handle: Any, flags: int) -> int:
        assert bytes(handle.data) == bytes(range(64))
        assert flags == 1
        self.num_opened += 1
        found._obj.value = self._memory.data_ptr()
        return 217 if self.refuses == "open" else 0

    def cuGetErrorName(self, code: int, name: Any) -> int:
        name._obj.value = f"ERROR_{code}".encode()
        return 0


@pytest.fixture
def memory() -> torch.Tensor:
    return torch.arange(NUM_BYTES, dtype=torch.uint8)


@pytest.fixture
def driver(memory: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver(memory)
    monkeypatch.setattr(shared_memory, "_driver", lambda: made)
    monkeypatch.setattr(shared_memory, "_bind", lambda device: None)
    shared_memory._opened.cache_clear()
    yield made
    shared_memory._opened.cache_clear()


def test_a_part_of_what_the_driver_gave_is_found_again(
    memory: torch.Tensor, driver: Driver
) -> None:
    handle = memory_handle(memory[16:80])
    found = memory_of(handle, 64, CPU)
    assert torch.equal(found, memory[16:80])
    found[0] = 255
    assert memory[16] == 255
    assert json.loads(handle)[1] == 16


def test_what_two_links_have_in_common_is_opened_once(memory: torch.Tensor, driver: Driver) -> None:
    for start in (0, 64):
        found = memory_of(memory_handle(memory[start : start + 64]), 64, CPU)
        assert found[0] == start
    assert driver.num_opened == 1


@pytest.mark.parametrize(
    ("refuses", "words"),
    [("get", r"code 201, ERROR_201"), ("open", r"another process's memory .*code 217, ERROR_217")],
)
def test_a_refusal_is_told_with_its_name(
    refuses: str, words: str, memory: torch.Tensor, driver: Driver
) -> None:
    driver.refuses = refuses
    with pytest.raises(CannotShareError, match=words):
        memory_of(memory_handle(memory), NUM_BYTES, CPU)


def test_a_kind_without_a_driver_or_marks_between_processes_says_so(
    memory: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "_DRIVER", "libof-no-gpu.so.1")
    monkeypatch.setattr(shared_memory, "_bind", lambda device: None)
    shared_memory._driver.cache_clear()
    with pytest.raises(CannotShareError, match="this kind of GPU shares no memory"):
        memory_handle(memory)
    kind = SimpleNamespace(Event=lambda: None)
    monkeypatch.setattr(shared_memory, "module_of", lambda device: kind)
    with pytest.raises(CannotShareError, match="no marks between processes"):
        shared_event(CPU)
    with pytest.raises(CannotShareError, match="another process's mark"):
        event_of("00", CPU)
