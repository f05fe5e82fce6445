"""The GPUs that a rank started from here would see, counted without torch where that can be.

NVIDIA     /dev/nvidia0, ...; CUDA_VISIBLE_DEVICES
AMD        the nodes of /sys/class/kfd that have a gpu_id; HIP_, ROCR_ and CUDA_VISIBLE_DEVICES
others     where there may be some a child asks torch: WSL2, Jetson, Intel's with a torch that has
           XPU, and whatever brings a backend of its own for torch

What torch then cannot use is found out at the start (`agent.gpus.check_gpus`). No other file of
the launcher asks torch for devices; for ranks, `workers.device` does.
"""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from bundlerun.launcher.errors import NodeError

CPU_ONLY_VARIABLE = "BUNDLERUN_CPU_ONLY"
"""Set for ranks that are to use the CPU, whatever accelerators there are."""
VISIBLE_CUDA = "CUDA_VISIBLE_DEVICES"
VISIBLE_HIP = "HIP_VISIBLE_DEVICES"
NODE_GPUS_VARIABLE = "BUNDLERUN_NODE_GPUS"
"""What all ranks of the node see together, in a rank that has been left its own GPU only."""
_VISIBLE_ROCR = "ROCR_VISIBLE_DEVICES"
_MIG = "MIG-"
_HIDES_ALL = ("", "-1", "NoDevFiles")
"""First entries that are usual where no GPU is to be seen."""
_DEVICE_HINTS = ("dxg", "nvhost-gpu", "nvgpu")
"""Files of /dev where GPUs have none of their own."""
_INTEL = "0x8086"
_CARD_MAKERS = ("0x10de", "0x1002")
_ASKED = """
import torch
found = torch.accelerator.current_accelerator()
print(0 if found is None else torch.get_device_module(found).device_count())
"""
_LONGEST_ANSWER_S = 60.0


def gpus_of_torch() -> int:
    """Accelerators that torch can use in this process; never starts CUDA."""
    import torch

    found = torch.accelerator.current_accelerator()
    return 0 if found is None else int(torch.get_device_module(found).device_count())


def accelerator_of_torch() -> str:
    """The kind of devices that torch could use in this process; empty where there are none."""
    import torch

    found = torch.accelerator.current_accelerator()
    return found.type if found is not None and gpus_of_torch() else ""


def mig_slices(environ: Mapping[str, str]) -> list[str]:
    """The slices of GPUs (MIG) that are visible; CUDA shows a process one of them at most."""
    names = names_in(environ.get(VISIBLE_CUDA, ""))
    return names if names and names[0].startswith(_MIG) else []


def variable_of_amd(environ: Mapping[str, str]) -> str:
    """The variable that says which of AMD's GPUs are visible."""
    return VISIBLE_HIP if environ.get(VISIBLE_HIP) else VISIBLE_CUDA


def names_in(visible: str) -> list[str]:
    """The entries of a variable that says which GPUs are visible."""
    return [name.strip() for name in visible.split(",") if name.strip()]


@functools.cache
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
    environ: Mapping[str, str], root: Path = Path("/"), ask: Callable[[], int] = asked_torch
) -> int:
    """GPUs that a rank started from here would see.

    Args:
        environ: of the rank.
        root: of the file system.
        ask: has torch count.

    Raises:
        NodeError: a variable names a GPU that is not there.
    """
    if environ.get(CPU_ONLY_VARIABLE):
        return 0
    devices = (root / "dev").glob("nvidia*")
    num_nvidia = sum(1 for path in devices if re.fullmatch(r"nvidia\d+", path.name))
    if num_nvidia:
        return _num_visible(num_nvidia, VISIBLE_CUDA, environ)
    # No NVIDIA device: AMD's driver lists processors, too, which `is_amd_gpu` leaves out.
    count = sum(map(is_amd_gpu, (root / "sys/class/kfd/kfd/topology/nodes").glob("*")))
    # Each counts in what the one before has left.
    for variable in (_VISIBLE_ROCR, variable_of_amd(environ)):
        count = _num_visible(count, variable, environ)
    if count or environ.get(VISIBLE_CUDA) == "":
        return count
    return ask() if may_have_others(root) else 0


def may_have_others(root: Path) -> bool:
    """Whether only torch can tell how many accelerators there are."""
    if any((root / "dev" / name).exists() for name in _DEVICE_HINTS):
        return True
    if any(map(_is_intel, (root / "sys/class/drm").glob("renderD*"))) and _torch_has_xpu():
        return True
    return bool(entry_points(group="torch.backends"))


def without_driver(root: Path = Path("/")) -> list[str]:
    """PCI addresses of NVIDIA's and AMD's graphics and computing cards where no driver shows any.

    In a container, that may be on purpose: it sees the cards of its machine all the same.
    """
    if any((root / "dev").glob("nvidia[0-9]*")) or any((root / "sys/class/kfd/kfd").glob("*")):
        return []
    cards = (root / "sys/bus/pci/devices").glob("*")
    return sorted(card.name for card in cards if _is_card(card))


def _is_card(device: Path) -> bool:
    # 0x0300: graphics, 0x0302: computing, 0x1200: AMD's accelerators.
    kind = _text(device / "class")[:6]
    return _text(device / "vendor") in _CARD_MAKERS and kind in ("0x0300", "0x0302", "0x1200")


def _torch_has_xpu() -> bool:
    """Whether torch is built for Intel's GPUs; does not load it."""
    found = find_spec("torch")
    folder = None if found is None or found.origin is None else Path(found.origin).parent
    return folder is not None and (folder / "lib/libc10_xpu.so").exists()


def _is_intel(card: Path) -> bool:
    return _text(card / "device/vendor") == _INTEL


def is_amd_gpu(node: Path) -> bool:
    """Whether a node of AMD's driver is a GPU; processors have the number 0."""
    return _text(node / "gpu_id") not in ("", "0")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return ""  # of another container


def _num_visible(present: int, variable: str, environ: Mapping[str, str]) -> int:
    """How many of those present a variable leaves."""
    visible = environ.get(variable)
    if visible is None or not present:
        return present
    count, names = 0, [name.strip() for name in visible.split(",")]
    if names[0] in _HIDES_ALL:
        return 0
    for name in names:
        if name in _HIDES_ALL:
            break  # CUDA, too, stops there
        if not _is_there(name, present):
            raise NodeError(
                f"{variable}={visible!r} names {name!r}, which is no GPU of this node: it has "
                f"{present}, from 0 to {present - 1}"
            )
        count += 1
    return count


def _is_there(name: str, present: int) -> bool:
    # A name may be of any GPU; torch's count is compared with ours at the start.
    return int(name) < present if name.isdecimal() else name.startswith(("GPU-", _MIG))
