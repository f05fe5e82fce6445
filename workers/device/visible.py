"""Lets a rank see its own GPU only: starting CUDA takes longer for each one that can be seen.

    CUDA_VISIBLE_DEVICES    4,5,6,7  ->  6      in the rank with local rank 2, before CUDA starts
    BUNDLERUN_NODE_GPUS     (none)   ->  4,5,6,7    for what is asked of the whole node later

CUDA reads the variable once, when a process first asks for anything. If something has asked before,
such as a user's own file, the rank goes on with all of them. NCCL and memory that processes share
need not see the other GPUs. Slices of a GPU (MIG) are the reason why this has to be: CUDA shows a
process one of them at most, the first.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path

import torch

from bundlerun.launcher.layout.machine.gpus import (
    NODE_GPUS_VARIABLE,
    VISIBLE_CUDA,
    mig_slices,
    names_in,
    variable_of_amd,
)


def show_only_own(local_rank: int, environ: MutableMapping[str, str]) -> int:
    """Hides the GPUs of other local ranks, if that is still possible.

    Args:
        local_rank: of this rank; ranks share GPUs where there are fewer.
        environ: of this process.

    Returns:
        The index of the own one among those that the process sees then.
    """
    variable = variable_of_amd(environ) if torch.version.hip else VISIBLE_CUDA
    before = environ.get(variable)
    names = _names(before, environ)
    if not names:
        return 0
    own = local_rank % len(names)
    environ[variable] = names[own]
    # A driver that has been asked before goes on showing what it showed then.
    if not may_be_started() or num_of_driver() == 1:
        environ.setdefault(NODE_GPUS_VARIABLE, ",".join(names))
        return 0
    if before is None:
        del environ[variable]
    else:
        environ[variable] = before
    return own


def _names(visible: str | None, environ: MutableMapping[str, str]) -> list[str]:
    # Before any count: for slices torch asks the driver, which then shows the first one for good.
    slices = mig_slices(environ)
    if slices:
        return slices
    count = torch.cuda.device_count()
    return [str(i) for i in range(count)] if visible is None else names_in(visible)[:count]


def may_be_started(maps: Path = Path("/proc/self/maps")) -> bool:
    """Whether something may have asked the driver in this process: its library is loaded then.

    torch loads CUDA's at the first question. That of ROCm it is linked to, so that says nothing.
    """
    return bool(torch.version.hip) or "/libcuda.so" in maps.read_text(encoding="utf-8")


def num_of_driver() -> int:
    """GPUs that CUDA shows this process from here on."""
    return int(torch._C._cuda_getDeviceCount())
