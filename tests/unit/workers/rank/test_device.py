"""The door to the device, with a stand-in for the CUDA runtime."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from bundlerun.workers.rank import device as door

ROOT = Path(__file__).parents[4]
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

    monkeypatch.setattr(door, "_runtime", lambda: runtime)
    monkeypatch.setattr(torch, "empty", launch)
    return runtime


def test_registered_memory_is_taken_back_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = stand_in(0, monkeypatch)
    memory = torch.zeros(10)
    registered = door.register(memory, GPU)
    assert registered is not None
    assert runtime.registered == {memory.data_ptr()}
    registered.end()
    assert not runtime.registered
    registered.end()  # the driver refuses; the next kernel does not hear of it
    assert runtime.kept == 0


def test_a_refusal_is_not_left_to_the_next_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = stand_in(304, monkeypatch)
    assert door.register(torch.zeros(10), GPU) is None
    assert runtime.kept == 0


def test_files_on_a_disk_are_never_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = stand_in(0, monkeypatch)
    monkeypatch.setattr(door, "is_in_memory", lambda path: False)
    assert door.register(torch.zeros(10), GPU, file=tmp_path) is None
    assert door.register(torch.zeros(0), GPU) is None
    assert door.register(torch.zeros(10), CPU) is None
    assert not runtime.registered


def test_file_systems_in_memory_are_known_by_their_kind(tmp_path: Path) -> None:
    assert door.is_in_memory(Path("/dev/shm"))
    number = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    line = f"36 35 {number >> 8 & 0xFFF}:{number & 0xFF} / {tmp_path} rw,noatime master:1 - KIND /x"
    mounts.write_text(line.replace("KIND", "ext4") + "\n")
    assert not door.is_in_memory(tmp_path, mounts)
    mounts.write_text(line.replace("KIND", "tmpfs") + "\n")
    assert door.is_in_memory(tmp_path, mounts)


def test_a_rank_has_one_stream_for_each_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "Stream", lambda device: object())
    door.stream.cache_clear()
    found = [door.stream(GPU, "snapshot") for _ in range(70)]
    assert len(set(map(id, found))) == 1
    assert door.stream(GPU, "copy in") is not found[0]
    door.stream.cache_clear()


@pytest.mark.parametrize(
    ("own", "wanted"), [({}, "32"), ({"CUDA_DEVICE_MAX_CONNECTIONS": "1"}, "1")]
)
def test_the_users_own_number_of_gpu_queues_counts(
    own: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "num_gpus", lambda: 0)
    door.own_device(0, own)
    assert own["CUDA_DEVICE_MAX_CONNECTIONS"] == wanted


def test_each_rank_gets_a_slice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "num_gpus", lambda: 0)
    environ = {"CUDA_VISIBLE_DEVICES": "MIG-a, MIG-b"}
    door.own_device(1, environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == "MIG-b"
    environ = {"CUDA_VISIBLE_DEVICES": "0,1"}
    door.own_device(1, environ)
    assert environ["CUDA_VISIBLE_DEVICES"] == "0,1"


def test_tests_of_the_cpu_see_no_gpu_and_looking_for_one_starts_nothing() -> None:
    """Ranks of tests are forked from this process; CUDA must not have begun in it."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"
    assert door.num_gpus() == 0
    assert not torch.cuda.is_initialized()
    assert not torch.cuda._is_in_bad_fork()


def named_of_a_gpu(source: str) -> Iterator[str]:
    """What a file names of torch that only GPUs have."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(value=ast.Name(id="torch"), attr="cuda" | "accelerator" as name):
                yield name
            case ast.Attribute(attr="is_cuda" | "record_stream" as name):
                yield name
            case ast.Constant(value="cuda"):
                yield "cuda"
            case ast.keyword(arg="pin_memory", value=ast.Constant()):
                yield "pin_memory"
            case ast.ImportFrom(module="torch", names=names):
                yield from (each.name for each in names if each.name in ("cuda", "accelerator"))
            case ast.ImportFrom(module=str(module)) if module.startswith("torch.cuda"):
                yield module
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.startswith("torch.cuda"))


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("torch.cuda.set_device(0)", ["cuda"]),
        ("torch.accelerator.device_count()", ["accelerator"]),
        ("torch.device('cuda')", ["cuda"]),
        ("t.device.type == 'cuda'", ["cuda"]),
        ("t.is_cuda and t.record_stream(s)", ["is_cuda", "record_stream"]),
        ("torch.zeros(1, pin_memory=True)", ["pin_memory"]),
        ("from torch import Tensor, cuda", ["cuda"]),
        ("from torch.cuda.amp import autocast", ["torch.cuda.amp"]),
        ("import torch.cuda", ["torch.cuda"]),
        ("door.is_gpu(torch.device('cpu'))", []),
    ],
)
def test_what_only_gpus_have_is_recognised(line: str, found: list[str]) -> None:
    assert sorted(named_of_a_gpu(line)) == sorted(found)


@pytest.mark.parametrize(
    ("folder", "doors"),
    [
        ("workers", ["workers/rank/device.py"]),
        ("launcher", ["launcher/layout/gpus.py"]),
        ("splits", []),
        ("slurm", []),
    ],
)
def test_only_the_door_names_what_only_gpus_have(folder: str, doors: list[str]) -> None:
    naming = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*.py")
        if any(named_of_a_gpu(path.read_text(encoding="utf-8")))
    ]
    assert naming == doors
