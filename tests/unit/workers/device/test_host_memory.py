"""Memory that a GPU copies from and to by itself, with a stand-in for the CUDA runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bundlerun.workers.device import host_memory

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


class StandInRuntime:
    """Keeps the last failure, as CUDA does, until somebody takes it up."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.kept = 0
        self.registered: set[int] = set()

    def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
        self.kept = self.code
        if not self.code:
            self.registered.add(address)
        return self.code

    def cudaHostUnregister(self, address: int) -> int:
        self.kept = 0 if address in self.registered else 713
        self.registered.discard(address)
        return self.kept


def stand_in(code: int, monkeypatch: pytest.MonkeyPatch) -> StandInRuntime:
    runtime = StandInRuntime(code)

    def launch(*sizes: int, device: torch.device) -> Any:
        """The next kernel: raises what is kept, which is then forgotten."""
        code, runtime.kept = runtime.kept, 0
        if code:
            raise RuntimeError(f"CUDA error: {code}\nmore of it")
        return torch.zeros(*sizes)

    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    monkeypatch.setattr(torch, "empty", launch)
    return runtime


def test_registered_memory_is_taken_back_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = stand_in(0, monkeypatch)
    memory = torch.zeros(10)
    registered = host_memory.register(memory, GPU)
    assert registered is not None
    assert runtime.registered == {memory.data_ptr()}
    registered.end()
    assert not runtime.registered
    registered.end()  # the driver refuses; the next kernel does not hear of it
    assert runtime.kept == 0


def test_a_refusal_is_not_left_to_the_next_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = stand_in(304, monkeypatch)
    assert host_memory.register(torch.zeros(10), GPU) is None
    assert runtime.kept == 0


def test_files_on_a_disk_are_never_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = stand_in(0, monkeypatch)
    monkeypatch.setattr(host_memory, "is_in_memory", lambda path: False)
    assert host_memory.register(torch.zeros(10), GPU, file=tmp_path) is None
    assert host_memory.register(torch.zeros(0), GPU) is None
    assert host_memory.register(torch.zeros(10), CPU) is None
    assert not runtime.registered


def test_file_systems_in_memory_are_known_by_their_kind(tmp_path: Path) -> None:
    assert host_memory.is_in_memory(Path("/dev/shm"))
    number = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    line = f"36 35 {number >> 8 & 0xFFF}:{number & 0xFF} / {tmp_path} rw,noatime master:1 - KIND /x"
    mounts.write_text(line.replace("KIND", "ext4") + "\n")
    assert not host_memory.is_in_memory(tmp_path, mounts)
    mounts.write_text(line.replace("KIND", "tmpfs") + "\n")
    assert host_memory.is_in_memory(tmp_path, mounts)


def test_memory_that_cannot_be_pinned_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    host_memory.can_pin.cache_clear()
    assert not host_memory.can_pin()  # no GPU is visible to the tests of the CPU
    found = host_memory.pinned((2, 3), torch.bfloat16)
    assert (found.shape, found.dtype, found.device) == ((2, 3), torch.bfloat16, CPU)


def test_a_kind_without_a_runtime_registers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "cudart")
    assert host_memory.register(torch.zeros(10), GPU) is None
