from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bundlerun.launcher.agent import gpus as found_gpus
from bundlerun.launcher.agent.gpus import check_gpus
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import Devices
from bundlerun.launcher.layout.machine import gpus
from bundlerun.launcher.layout.machine.gpus import count_gpus, without_driver
from bundlerun.launcher.meeting.network import as_typed
from bundlerun.launcher.plan import NodePlan


def with_nvidia(root: Path) -> Path:
    """A node with three of NVIDIA's GPUs."""
    (root / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (root / "dev" / name).touch()
    return root


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        (None, 3),
        ("", 0),
        ("0,2", 2),
        ("-1", 0),
        ("1,-1,0", 1),
        ("GPU-a,GPU-b", 2),
        ("NoDevFiles", 0),
    ],
)
def test_visible_gpus_are_counted_as_cuda_counts_them(
    tmp_path: Path, visible: str | None, count: int
) -> None:
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert count_gpus(environ, with_nvidia(tmp_path)) == count


@pytest.mark.parametrize("visible", ["7", "1,7,0", "0,nonsense"])
def test_a_gpu_that_is_not_there_is_told_in_one_line(tmp_path: Path, visible: str) -> None:
    with pytest.raises(NodeError, match=r"'(7|nonsense)', which is no GPU .* 3, from 0 to 2$"):
        count_gpus({"CUDA_VISIBLE_DEVICES": visible}, with_nvidia(tmp_path))


def test_ranks_that_are_to_use_the_cpu_see_none(tmp_path: Path) -> None:
    assert count_gpus({"BUNDLERUN_CPU_ONLY": "1"}, with_nvidia(tmp_path)) == 0


def test_without_a_gpu_the_variable_makes_none(tmp_path: Path) -> None:
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "GPU-a"}, tmp_path) == 0
    assert count_gpus({"CUDA_VISIBLE_DEVICES": "3"}, tmp_path) == 0


def drivers_nodes(folder: Path, *gpu_ids: str) -> Path:
    """What AMD's driver shows: a folder for each processor and GPU."""
    for number, gpu_id in enumerate(gpu_ids):
        node = folder / "sys/class/kfd/kfd/topology/nodes" / str(number)
        node.mkdir(parents=True)
        (node / "gpu_id").write_text(gpu_id + "\n")
    return folder


@pytest.mark.parametrize(
    ("environ", "count"),
    [
        ({}, 3),
        ({"HIP_VISIBLE_DEVICES": "0,2"}, 2),
        ({"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}, 1),
        ({"HIP_VISIBLE_DEVICES": "0,2", "CUDA_VISIBLE_DEVICES": "0,2"}, 2),
        ({"CUDA_VISIBLE_DEVICES": ""}, 0),
    ],
)
def test_amds_gpus_are_counted_as_its_driver_shows_them(
    tmp_path: Path, environ: dict[str, str], count: int
) -> None:
    root = drivers_nodes(tmp_path, "0", "0", "51234", "8001", "47")
    assert count_gpus(environ, root, ask=lambda: 99) == count


@pytest.mark.parametrize("name", ["dxg", "nvhost-gpu"])
def test_torch_is_asked_where_gpus_have_no_files_of_their_own(tmp_path: Path, name: str) -> None:
    assert count_gpus({}, tmp_path, ask=lambda: 1) == 0
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / name).touch()
    assert count_gpus({}, tmp_path, ask=lambda: 1) == 1
    assert count_gpus({"CUDA_VISIBLE_DEVICES": ""}, tmp_path, ask=lambda: 1) == 0


@pytest.mark.parametrize(
    ("vendor", "has_xpu", "count"),
    [
        ("0x8086", True, 4),
        ("0x8086", False, 0),
        ("0x1002", True, 0),
    ],
)
def test_torch_is_asked_for_intels_gpus_if_it_is_built_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, has_xpu: bool, count: int
) -> None:
    card = tmp_path / "sys/class/drm/renderD128/device"
    card.mkdir(parents=True)
    (card / "vendor").write_text(vendor + "\n")
    monkeypatch.setattr(gpus, "_torch_has_xpu", lambda: has_xpu)
    assert count_gpus({}, tmp_path, ask=lambda: 4) == count


def test_torch_is_asked_where_something_brings_a_backend_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "entry_points", lambda group: [group])
    assert count_gpus({}, tmp_path, ask=lambda: 8) == 8


def test_this_torch_has_no_xpu_and_says_so_without_being_loaded() -> None:
    assert gpus._torch_has_xpu() == torch.xpu._is_compiled()


def node_of(kind: str, count: int) -> NodePlan:
    return NodePlan(
        name="n",
        devices=Devices(kind=kind, count=count),
        layouts=(),
        loaders=0,
        meeting=as_typed(LaunchConfig()),
        log_dir="",
        environment={},
    )


def test_gpus_that_torch_cannot_use_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    check_gpus(node_of("gpu", 1), is_cpu_asked=False)
    with pytest.raises(
        NodeError, match=r"shows 2 GPUs with .*='', torch can use 1.* --devices cpu"
    ):
        check_gpus(node_of("gpu", 2), is_cpu_asked=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    check_gpus(node_of("gpu", 2), is_cpu_asked=False)  # one of them at most is shown


def test_devices_of_other_kinds_are_not_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    found = torch.device("xpu")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: found)
    monkeypatch.setattr(torch.xpu, "device_count", lambda: 2)
    check_gpus(node_of("cpu", 2), is_cpu_asked=True)
    with pytest.raises(NodeError, match=r"'xpu'.* use --devices cpu"):
        check_gpus(node_of("cpu", 2), is_cpu_asked=False)


def test_a_machine_without_any_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found_gpus, "without_driver", list)
    assert check_gpus(node_of("cpu", 2), is_cpu_asked=False) == ""


def with_cards(root: Path, *cards: tuple[str, str]) -> Path:
    for number, (vendor, kind) in enumerate(cards):
        folder = root / f"sys/bus/pci/devices/0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(vendor + "\n")
        (folder / "class").write_text(kind + "\n")
    return root


def test_cards_that_no_driver_shows_are_found_on_the_bus(tmp_path: Path) -> None:
    # A network card, NVIDIA's for computing and its sound, graphics of a processor.
    cards = [
        ("0x15b3", "0x020000"), ("0x10de", "0x030200"), ("0x10de", "0x040300"),
        ("0x8086", "0x030000"), ("0x1002", "0x120000"),
    ]  # fmt: skip
    root = with_cards(tmp_path, *cards)
    assert without_driver(root) == ["0000:01:00.0", "0000:04:00.0"]
    with_nvidia(root)
    assert without_driver(root) == []


def test_a_run_on_the_cpu_beside_them_is_told_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(found_gpus, "without_driver", lambda: ["0000:07:00.0"])
    assert check_gpus(node_of("cpu", 2), is_cpu_asked=True) == ""
    told = check_gpus(node_of("cpu", 2), is_cpu_asked=False)
    assert "has 1 GPUs (PCI 0000:07:00.0) and no driver shows them" in told
