"""Torch's switches, with a GPU that says of itself what a test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.device import switches
from bundlerun.workers.device.switches import prepare, set_switches
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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[Traits], None]:
    """Says what the GPU is."""
    return lambda traits: monkeypatch.setattr(switches, "traits_of", lambda device: traits)


def test_nothing_is_switched_on_the_cpu_unless_it_is_asked() -> None:
    before = state()
    set_switches(config(), CPU, speaks=True)
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
def test_a_gpu_is_fast_or_repeatable(
    options: dict[str, Any], wanted: object, gpu: Callable[[Traits], None]
) -> None:
    gpu(NEW)
    set_switches(config(**options), GPU, speaks=True)
    assert state() == wanted


def test_the_workspace_of_cublas_is_fixed_unless_the_user_does() -> None:
    environ: dict[str, str] = {}
    prepare(config(), environ)
    assert not environ
    prepare(config(deterministic=True), environ)
    assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    environ["CUBLAS_WORKSPACE_CONFIG"] = ":16:8"
    prepare(config(deterministic=True), environ)
    assert environ == {"CUBLAS_WORKSPACE_CONFIG": ":16:8"}


def test_what_the_device_does_not_do_is_refused(gpu: Callable[[Traits], None]) -> None:
    with pytest.raises(ConfigError, match="--tf32 is for GPUs, and this would run on the CPU"):
        set_switches(config(tf32="on"), CPU, speaks=True)
    gpu(OLD)
    with pytest.raises(ConfigError, match="--tf32 is not in Tesla T4"):
        set_switches(config(tf32="on"), GPU, speaks=False)
    set_switches(config(tf32="off"), GPU, speaks=True)


def test_an_emulated_bfloat16_is_told_once_per_node(
    gpu: Callable[[Traits], None], caplog: pytest.LogCaptureFixture
) -> None:
    gpu(NEW)
    set_switches(config(precision="bfloat16"), GPU, speaks=True)
    gpu(OLD)
    set_switches(config(precision="bfloat16"), GPU, speaks=False)
    set_switches(config(), GPU, speaks=True)
    assert not caplog.messages
    set_switches(config(precision="bfloat16"), GPU, speaks=True)
    (message,) = caplog.messages
    assert message.startswith("Tesla T4 has no bfloat16 of its own")
