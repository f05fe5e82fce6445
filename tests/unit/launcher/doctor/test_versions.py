"""Which versions fit together, by facts; and how they are read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.doctor.findings import Level
from bundlerun.launcher.doctor.read.versions import driver_version, values_of_module
from bundlerun.launcher.doctor.versions import VersionFacts, check_versions, meets

GOOD = VersionFacts(
    python=(3, 12, 1),
    torch="2.14.1+cu130",
    cuda="13.0",
    torchvision="0.29.1+cu130",
    torchvision_needs=">=2.14.0",
    nccl="2.30.7",
    driver="580.65.06",
    num_gpus=8,
    num_nvidia=8,
)


def levels(facts: VersionFacts) -> dict[str, Level]:
    return {each.subject: each.level for each in check_versions(facts)}


def test_a_pair_that_goes_together_is_ok() -> None:
    assert set(levels(GOOD).values()) == {Level.OK}
    assert set(levels(GOOD)) == {"python", "torch", "torchvision", "driver", "NCCL"}


@pytest.mark.parametrize(
    ("changes", "subject", "level"),
    [
        ({"python": (3, 10, 2)}, "python", Level.ERROR),
        ({"torch": ""}, "torch", Level.ERROR),
        ({"torch": "2.10.1"}, "torch", Level.ERROR),
        ({"torchvision": ""}, "torchvision", Level.ERROR),
        ({"torch": "2.13.0"}, "torchvision", Level.ERROR),
        ({"torchvision": "0.28.0", "torchvision_needs": ""}, "torchvision", Level.ERROR),
        (
            {"torchvision": "0.28.0", "torch": "2.13.1", "torchvision_needs": ""},
            "torchvision",
            Level.OK,
        ),
        ({"torchvision": "0.29.1+cu126"}, "torchvision", Level.ERROR),
        ({"torchvision": "0.29.1+cu132"}, "torchvision", Level.OK),
        ({"torch": "2.14.1+cpu", "cuda": "", "num_gpus": 0}, "torchvision", Level.WARNING),
        ({"torch": "2.14.1+cpu", "cuda": ""}, "CUDA", Level.ERROR),
        ({"driver": "575.57"}, "driver", Level.ERROR),
        ({"driver": "575.57", "has_compat": True}, "driver", Level.WARNING),
        ({"driver": "575.57", "cuda": "12.8"}, "driver", Level.OK),
        ({"driver": ""}, "driver", Level.WARNING),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, object], subject: str, level: Level) -> None:
    assert levels(replace(GOOD, **changes))[subject] is level  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "needs", "is_met"),
    [
        ("2.14.1+cu130", ">=2.14.0", True),
        ("2.14", ">=2.14.0,<3", True),
        ("3.0", ">=2.14.0,<3", False),
        ("2.5.1", "==2.5.1", True),
        ("2.5.0", "==2.5.1", False),
        ("2.5.0", "~=2.4", True),
        ("nightly", ">=2", True),
    ],
)
def test_a_requirement_is_read(version: str, needs: str, is_met: bool) -> None:
    assert meets(version, needs) is is_met


def test_a_version_is_read_without_an_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "versioned"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.1+cu1'\ncuda: Optional[str] = '1.0'\n"
        "hip: Optional[str] = None\ndebug = False\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert values_of_module("versioned") == {"__version__": "2.1+cu1", "cuda": "1.0"}
    assert values_of_module("no_such_package") == {}


def test_the_driver_is_read_from_the_kernel(tmp_path: Path) -> None:
    assert driver_version(tmp_path) == ""
    proc = tmp_path / "proc/driver/nvidia"
    proc.mkdir(parents=True)
    (proc / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build\n"
        "GCC version:  gcc version 13.3.0\n"
    )
    assert driver_version(tmp_path) == "580.95.05"
    sysfs = tmp_path / "sys/module/nvidia"
    sysfs.mkdir(parents=True)
    (sysfs / "version").write_text("590.1\n")
    assert driver_version(tmp_path) == "590.1"
