"""Torch's switches, with a GPU that says of itself what a test wants."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.device import accelerator, switches
from bundlerun.workers.device.switches import check_device, open_device, set_switches
from bundlerun.workers.device.traits import Traits

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
OLD = Traits(name="Tesla T4", has_tf32=False, has_bfloat16=False)
NEW = Traits(name="H100", has_tf32=True, has_bfloat16=True)


def config(**options: Any) -> TrainConfig:
    return TrainConfig(data="x", **options)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Every test leaves the switches of this process as they were."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    yield
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
    torch.set_float32_matmul_precision("highest")
    torch.use_deterministic_algorithms(False)


def state() -> tuple[bool, bool, bool, str, bool]:
    cudnn = torch.backends.cudnn
    return (
        cudnn.benchmark,
        cudnn.deterministic,
        cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
    )


def test_nothing_is_switched_on_the_cpu_unless_it_is_asked() -> None:
    before = state()
    set_switches(config(), CPU)
    assert state() == before


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, (True, False, True, "highest", False)),
        ({"tf32": "on"}, (True, False, True, "high", False)),
        ({"tf32": "off"}, (True, False, False, "highest", False)),
        ({"deterministic": True}, (False, True, True, "highest", True)),
    ],
    ids=str,
)
def test_a_gpu_is_fast_or_repeatable(options: dict[str, Any], wanted: object) -> None:
    set_switches(config(**options), GPU)
    assert state() == wanted


def test_the_workspace_of_cublas_is_fixed_before_the_device_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def starts(local_rank: int) -> torch.device:
        seen.append((local_rank, os.environ.get("CUBLAS_WORKSPACE_CONFIG")))
        return CPU

    monkeypatch.setattr(accelerator, "own_device", starts)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    assert open_device(config(), 3) == CPU
    open_device(config(deterministic=True), 0)
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"  # the user's own counts
    open_device(config(deterministic=True), 1)
    assert seen == [(3, None), (0, ":4096:8"), (1, ":16:8")]


def test_what_the_device_does_not_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--tf32 is for GPUs, and this would run on the CPU"):
        check_device(config(tf32="on"), CPU, speaks=True)
    monkeypatch.setattr(switches, "traits_of", lambda device: OLD)
    with pytest.raises(ConfigError, match="--tf32 is not in Tesla T4"):
        check_device(config(tf32="on"), GPU, speaks=False)
    check_device(config(tf32="off"), GPU, speaks=True)
    monkeypatch.setattr(switches, "traits_of", lambda device: NEW)
    check_device(config(tf32="on"), GPU, speaks=True)


def test_an_emulated_bfloat16_is_told_once_per_node(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(switches, "traits_of", lambda device: NEW)
    check_device(config(precision="bfloat16"), GPU, speaks=True)
    monkeypatch.setattr(switches, "traits_of", lambda device: OLD)
    check_device(config(precision="bfloat16"), GPU, speaks=False)
    check_device(config(), GPU, speaks=True)
    assert not caplog.messages
    check_device(config(precision="bfloat16"), GPU, speaks=True)
    (message,) = caplog.messages
    assert message.startswith("Tesla T4 has no bfloat16 of its own")
