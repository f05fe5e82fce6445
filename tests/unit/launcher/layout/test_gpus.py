from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundlerun.launcher.agent.elastic import check_gpus
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.gpus import count_gpus
from bundlerun.launcher.layout.hardware import Devices
from bundlerun.launcher.meeting.network import as_typed
from bundlerun.launcher.plan import NodePlan


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3),
        ("", 0),
        ("0,2", 2),
        ("1,7,0", 1),
        ("-1", 0),
        ("GPU-a,GPU-b", 2),
        ("NoDevFiles", 0),
    ],
)
def test_visible_gpus_are_counted_as_cuda_counts_them(
    tmp_path: Path, visible: str | None, count: int
) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_gpus(environ, tmp_path, tmp_path) == count


def test_without_a_gpu_the_variable_makes_none(tmp_path: Path) -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a"}, tmp_path, tmp_path) == 0


def drivers_nodes(folder: Path, *gpu_ids: str) -> Path:
    """What AMD's driver shows: a folder for each processor and GPU."""
    for number, gpu_id in enumerate(gpu_ids):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "gpu_id").write_text(gpu_id + "\n")
    return folder


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 3),
        ({"HIP_VISIBLE_DEVICES": "0,2"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_amds_gpus_are_counted_as_its_driver_shows_them(
    tmp_path: Path, environ: dict[str, str], count: int
) -> None:
    kfd = drivers_nodes(tmp_path / "kfd", "0", "0", "51234", "8001", "47")
    assert count_gpus(environ, tmp_path, kfd, ask=lambda: 99) == count


@pytest.mark.parametrize("name", ["dxg", "nvhost-gpu"])
def test_torch_is_asked_where_gpus_have_no_files_of_their_own(tmp_path: Path, name: str) -> None:
    none = tmp_path / "kfd"
    assert count_gpus({}, tmp_path, none, ask=lambda: 1) == 0
    (tmp_path / name).touch()
    assert count_gpus({}, tmp_path, none, ask=lambda: 1) == 1
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path, none, ask=lambda: 1) == 0


def node_of(kind: str, count: int) -> NodePlan:
    return NodePlan(
        name="n",
        devices=Devices(kind=kind, count=count),
        layouts=(),
        meeting=as_typed(LaunchConfig()),
        log_dir="",
        environment={},
    )


def test_gpus_that_torch_cannot_use_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    check_gpus(node_of("gpu", 1), is_cpu_asked=False)
    with pytest.raises(NodeError, match=r"shows 2 GPUs, torch can use 1.* --devices cpu"):
        check_gpus(node_of("gpu", 2), is_cpu_asked=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    check_gpus(node_of("gpu", 2), is_cpu_asked=False)  # one of them at most is shown


def test_devices_of_other_kinds_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: found)
    check_gpus(node_of("cpu", 2), is_cpu_asked=True)
    with pytest.raises(NodeError, match=r"'xpu'.* use --devices cpu"):
        check_gpus(node_of("cpu", 2), is_cpu_asked=False)


def test_a_machine_without_any_runs_on_the_cpu() -> None:
    check_gpus(node_of("cpu", 2), is_cpu_asked=False)
