"""GPUs and their links, by what nvidia-smi and torch write."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.doctor.asked import AskedGpu, AskedTorch, check_asked, check_gpu_memory
from bundlerun.launcher.doctor.devices import (
    DeviceFacts,
    check_devices,
    check_gpu_links,
    parse_gpus,
    parse_links,
)
from bundlerun.launcher.doctor.findings import Level

GIB = 1 << 30
TABLE = """\
0, NVIDIA H200, 16, 16, 0, Not Active, 31
1, NVIDIA H200, 8, 16, 3, Active, 92
2, NVIDIA GeForce RTX 3090, 4, 16, [N/A], [N/A], 40
oddly formed
"""
TOPOLOGY = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\x1b[0m
GPU0\t X \tNV18\tSYS\tPIX\t0-31\t0
GPU1\tNV18\t X \tNODE\tSYS\t0-31\t0
GPU2\tSYS\tNODE\t X \tSYS\t32-63\t1
NIC0\tPIX\tSYS\tSYS\t X

Legend:
  X    = Self
"""
H200 = AskedGpu(name="NVIDIA H200", capability=(9, 0), free=140 * GIB, total=141 * GIB)


def test_the_table_of_gpus_is_read() -> None:
    first, second, third = parse_gpus(TABLE)
    assert (first.name, first.width, first.is_slowed) == ("NVIDIA H200", 16, False)
    assert (second.uncorrected, second.is_slowed, second.celsius) == (3, True, 92)
    assert (third.uncorrected, third.width) == (0, 4)


def test_what_is_wrong_with_a_gpu_is_told() -> None:
    facts = DeviceFacts(kind="auto", num_gpus=3, gpus=parse_gpus(TABLE))
    found = [(each.subject, each.level) for each in check_devices(facts)]
    assert found == [("devices", Level.OK), *[("GPU 1", Level.WARNING)] * 3, ("GPU 2", "warning")]


def test_links_of_gpus_are_read_and_an_odd_one_is_told() -> None:
    assert parse_links(TOPOLOGY) == ((0, 1, "NV18"), (0, 2, "SYS"), (1, 2, "NODE"))
    (finding,) = check_gpu_links(parse_links(TOPOLOGY))
    assert finding.level is Level.OK
    mostly = [(0, 1, "NV18"), (0, 2, "NV18"), (1, 2, "SYS")]
    (finding,) = check_gpu_links(mostly)
    assert (finding.level, finding.mend[:8]) == (Level.WARNING, "1-2 have")


@pytest.mark.parametrize(
    ("facts", "level"),
    [
        (DeviceFacts(kind="auto", num_gpus=0), Level.OK),
        (DeviceFacts(kind="cpu", num_gpus=0), Level.OK),
        (DeviceFacts(kind="gpu", num_gpus=0), Level.ERROR),
        (DeviceFacts(kind="auto", num_gpus=0, cards=("0000:07:00.0",)), Level.WARNING),
        (DeviceFacts(kind="auto", num_gpus=0, why_not="CUDA_VISIBLE_DEVICES='9' ..."), Level.ERROR),
    ],
)
def test_devices_are_those_that_were_asked_for(facts: DeviceFacts, level: Level) -> None:
    (finding,) = check_devices(facts)
    assert finding.level is level


@pytest.mark.parametrize(
    ("changes", "num_gpus", "subject", "level"),
    [
        ({}, 1, "GPUs", Level.OK),
        ({}, 2, "GPUs", Level.ERROR),
        ({"built_for": ("sm_80", "sm_90", "compute_90")}, 1, "GPUs", Level.OK),
        ({"built_for": ("sm_80", "sm_100a")}, 1, "GPUs", Level.ERROR),
        ({"built_for": ("sm_80", "compute_80")}, 1, "GPUs", Level.OK),
        ({"has_nms": False}, 1, "torchvision", Level.WARNING),
        ({"apart": ((0, 1),)}, 1, "GPU links", Level.WARNING),
        ({"why_not": "it ends with 1: ImportError"}, 1, "torch runs", Level.ERROR),
    ],
)
def test_what_torch_says_is_judged(
    changes: dict[str, object], num_gpus: int, subject: str, level: Level
) -> None:
    facts = replace(AskedTorch(gpus=(H200,)), **changes)  # type: ignore[arg-type]
    found = {each.subject: each.level for each in check_asked(facts, num_gpus)}
    assert found[subject] is level


def test_memory_in_use_by_others_is_told() -> None:
    used = replace(H200, free=100 * GIB)
    (finding,) = check_gpu_memory(AskedTorch(gpus=(H200, used)))
    assert "GPU 1 has 41.0 GiB of 141.0 GiB in use" in finding.text


def test_the_answer_comes_back_as_it_was_printed() -> None:
    gpu = {"name": "NVIDIA H200", "capability": [9, 0], "free": H200.free, "total": H200.total}
    plain = {
        "gpus": [gpu], "built_for": ["sm_90"], "nccl": "2.30.7", "has_nms": True,
        "apart": [[0, 1]],
    }  # fmt: skip
    facts = AskedTorch.of_plain(plain, 2.0)
    assert (facts.gpus, facts.apart, facts.built_for) == ((H200,), ((0, 1),), ("sm_90",))
