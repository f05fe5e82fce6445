"""The GPUs that a rank started from here would see, counted without torch where that can be.

NVIDIA     /dev/nvidia0, ...; CUDA_VISIBLE_DEVICES
AMD        the nodes of /sys/class/kfd that have a gpu_id; HIP_, ROCR_ and CUDA_VISIBLE_DEVICES
others     WSL2 and Jetson show that there may be some: a child asks torch

What torch then cannot use is found out at the start (`agent.elastic.check_gpus`). No other file of
the launcher asks torch for devices; for ranks, `workers.device` does.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

CPU_ONLY_VARIABLE = "BUNDLERUN_CPU_ONLY"
"""Set for ranks that are to use the CPU, whatever accelerators there are."""
_HINTS = ("dxg", "nvhost-gpu", "nvgpu")
"""Files of /dev where GPUs have none of their own."""
_ASKED = "import torch; print(torch.cuda.device_count())"
_LONGEST_ANSWER_S = 60.0
_VISIBLE_CUDA = "CUDA_VISIBLE_DEVICES"
_MIG = "MIG-"
_VISIBLE_AMD = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", _VISIBLE_CUDA)


def gpus_of_torch() -> int:
    """GPUs that torch can use in this process; never starts CUDA."""
    import torch

    return torch.cuda.device_count()


def accelerator_of_torch() -> str:
    """The kind of devices that torch could use in this process; empty where there are none."""
    import torch

    found = torch.accelerator.current_accelerator(check_available=True)
    return "" if found is None else found.type


def mig_slices(environ: Mapping[str, str]) -> list[str]:
    """The slices of GPUs (MIG) that are visible; CUDA shows a process one of them at most."""
    names = [name.strip() for name in environ.get(_VISIBLE_CUDA, "").split(",")]
    return names if names[0].startswith(_MIG) else []


def asked_torch() -> int:
    """What torch counts, in a process of its own; 0 where it cannot."""
    words = [sys.executable, "-c", _ASKED]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=_LONGEST_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    text = done.stdout.strip()
    return int(text) if done.returncode == 0 and text.isdecimal() else 0


def count_gpus(
    environ: Mapping[str, str],
    dev: Path = Path("/dev"),
    kfd: Path = Path("/sys/class/kfd/kfd/topology/nodes"),
    ask: Callable[[], int] = asked_torch,
) -> int:
    """GPUs that a rank started from here would see.

    Args:
        environ: of the rank.
        dev: the folder of device files.
        kfd: what AMD's driver says of processors and GPUs.
        ask: has torch count.
    """
    num_nvidia = sum(1 for path in dev.glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))
    if num_nvidia:
        return _num_visible(num_nvidia, environ.get(_VISIBLE_CUDA))
    # No NVIDIA device: AMD's driver lists processors, too, which `_is_gpu` leaves out.
    count = sum(map(_is_gpu, kfd.glob("*/gpu_id")))
    for variable in _VISIBLE_AMD:  # each counts in what the one before has left
        count = _num_visible(count, environ.get(variable))
    if count or environ.get(_VISIBLE_CUDA) == "":
        return count
    return ask() if any((dev / name).exists() for name in _HINTS) else 0


def _is_gpu(file: Path) -> bool:
    """Whether a node of the driver is one; processors have the number 0."""
    try:
        return file.read_text().strip() not in ("", "0")
    except OSError:
        return False  # of another container


def _num_visible(present: int, visible: str | None) -> int:
    """How many of those present a variable leaves."""
    if visible is None or not present:
        return present
    count = 0
    for name in filter(None, (part.strip() for part in visible.split(","))):
        known = int(name) < present if name.isdecimal() else name.startswith(("GPU-", _MIG))
        if not known:
            break  # CUDA, too, stops at the first that is not there
        count += 1
    return count
