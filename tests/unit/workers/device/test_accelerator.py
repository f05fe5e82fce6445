"""The accelerator of a rank, with a stand-in for the module that torch has for its kind."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bundlerun.workers.device import accelerator as door

ROOT = Path(__file__).parents[4]
GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")


class Mark:
    """An event that keeps what it was asked."""

    def __init__(self, *, enable_timing: bool = False, blocking: bool = False) -> None:
        self.has_time, self.lets_sleep = enable_timing, blocking
        self.recorded: list[object] = []
        self.num_waits = 0

    def record(self, stream: object = None) -> None:
        self.recorded.append(stream)

    def synchronize(self) -> None:
        self.num_waits += 1


class PlainMark(Mark):
    """That of a kind whose events have no such choice."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        super().__init__(enable_timing=enable_timing)


def stand_in(monkeypatch: pytest.MonkeyPatch, count: int = 2, **others: object) -> SimpleNamespace:
    """A module of the kind "cuda" that counts `count` devices and keeps what it is asked."""
    seen = SimpleNamespace(devices=[], seeds=[], streams=[], marks=[])
    current = object()

    def mark(**options: bool) -> Mark:
        seen.marks.append(Mark(**options))
        return seen.marks[-1]

    module = SimpleNamespace(
        device_count=lambda: count,
        set_device=seen.devices.append,
        manual_seed=seen.seeds.append,
        Stream=lambda device: object(),
        Event=mark,
        current_stream=lambda device: current,
        **others,
    )
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: module)
    monkeypatch.setattr(door, "show_only_own", lambda local_rank, environ: local_rank)
    for cached in (door.stream, door._can_sleep):
        cached.cache_clear()
    seen.current = current
    return seen


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """What was made of a stand-in is of no use to other tests."""
    yield
    for cached in (door.stream, door._can_sleep):
        cached.cache_clear()


def test_ranks_get_the_accelerators_of_whatever_kind_in_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = stand_in(monkeypatch)
    found = torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    devices = [door.own_device(rank, {}) for rank in range(3)]
    assert devices == [torch.device("xpu", index) for index in (0, 1, 0)]
    assert seen.devices == devices
    assert door.is_gpu(devices[0])
    assert not door.has_nccl(devices[0])
    assert door.has_nccl(GPU) == torch.distributed.is_nccl_available()


def test_ranks_that_are_to_use_the_cpu_take_no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    assert door.own_device(0, {"BUNDLERUN_CPU_ONLY": "1"}) == CPU
    assert door.num_gpus({"BUNDLERUN_CPU_ONLY": "1"}) == 0
    stand_in(monkeypatch, count=0)
    assert door.own_device(0, {}) == CPU


def test_an_accelerator_without_streams_is_told_and_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stand_in(monkeypatch)
    assert (door.kind({}), door.unused_kind({})) == ("cuda", "")
    monkeypatch.setattr(
        torch, "get_device_module", lambda device: SimpleNamespace(device_count=lambda: 1)
    )
    assert (door.kind({}), door.unused_kind({})) == ("", "cuda")
    assert door.own_device(0, {}) == CPU


def test_who_waits_for_a_mark_sleeps_where_the_kind_has_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = stand_in(monkeypatch)
    made = door.mark(GPU)
    assert made is seen.marks[-1]
    assert seen.marks[-1].lets_sleep
    assert seen.marks[-1].recorded == [seen.current]
    door.finish(GPU)
    assert [each.num_waits for each in seen.marks] == [0, 0, 1]
    timer: Any = door.timer(GPU)
    assert timer.has_time
    stand_in(monkeypatch)
    monkeypatch.setattr(torch.get_device_module(GPU), "Event", PlainMark)
    event: Any = door.event(GPU)
    assert not event.lets_sleep


def test_a_seed_gives_the_numbers_that_torch_gives_and_no_other_device_is_seeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(2**63 + 5)
    wanted = torch.rand(4)
    seen = stand_in(monkeypatch)
    door.seed(CPU, 2**63 + 5)
    assert torch.equal(torch.rand(4), wanted)
    assert seen.seeds == []
    door.seed(GPU, 7)
    assert seen.seeds == [7]


def test_the_random_state_is_kept_on_the_cpu() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(2)
    torch.manual_seed(1)
    with door.kept_random_state(CPU):
        torch.rand(9)
    assert torch.equal(torch.rand(2), wanted)


def test_memory_is_told_by_kinds_that_give_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    assert door.memory(CPU) is None
    stand_in(monkeypatch)
    assert door.memory(GPU) is None
    stand_in(
        monkeypatch,
        mem_get_info=lambda device: (10, 80),
        memory_reserved=lambda device: 60,
        max_memory_reserved=lambda device: 65,
    )
    assert door.memory(GPU) == door.Memory(peak=65, own=60, free=10, capacity=80)


def test_a_gpu_has_the_name_that_its_kind_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert door.name_of(CPU, {}) == ""
    stand_in(monkeypatch)
    assert door.name_of(GPU, {}).startswith("cuda:0, ")
    stand_in(monkeypatch, get_device_properties=lambda device: SimpleNamespace(uuid="e8-f"))
    assert door.name_of(GPU, {}) == "e8-f"
    # NCCL takes no two slices of one GPU, and which ones are of one is not known.
    slices = {door.name_of(GPU, {"CUDA_VISIBLE_DEVICES": f"MIG-{each}"}) for each in "ab"}
    assert len(slices) == 1


def test_slices_are_told_apart_before_anything_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counting slices starts CUDA, with the first one for good."""
    stand_in(monkeypatch)
    order = []
    module = torch.get_device_module(GPU)
    monkeypatch.setattr(module, "device_count", lambda: order.append("count") or 1)
    monkeypatch.setattr(door, "show_only_own", lambda *_: order.append("hide") or 0)
    assert door.unused_kind({}) == ""
    assert order == []
    door.own_device(1, {})
    assert order[0] == "hide"


def test_a_rank_has_one_stream_for_each_purpose(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    found = [door.stream(GPU, "snapshot") for _ in range(70)]
    assert len(set(map(id, found))) == 1
    assert door.stream(GPU, "copy in") is not found[0]


@pytest.mark.parametrize(
    ("own", "wanted"), [({}, "32"), ({"CUDA_DEVICE_MAX_CONNECTIONS": "1"}, "1")]
)
def test_the_users_own_number_of_gpu_queues_counts(
    own: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "num_gpus", lambda environ: 0)
    door.own_device(0, own)
    assert own["CUDA_DEVICE_MAX_CONNECTIONS"] == wanted


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
        (
            "workers",
            [
                f"workers/device/{name}.py"
                for name in ("accelerator", "host_memory", "traits", "visible")
            ],
        ),
        (
            "launcher",
            # The doctor asks torch in a process of its own, and judges CUDA's version.
            [
                "launcher/doctor/read/ask_torch.py",
                "launcher/doctor/read/versions.py",
                "launcher/layout/machine/gpus.py",
            ],
        ),
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
    assert sorted(naming) == doors
