"""Whether torch can use the devices that a node shows."""

from __future__ import annotations

import os

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.layout.machine.gpus import (
    VISIBLE_CUDA,
    accelerator_of_torch,
    gpus_of_torch,
    mig_slices,
    without_driver,
)
from bundlerun.launcher.plan import NodePlan


def check_gpus(node: NodePlan, *, is_cpu_asked: bool) -> str:
    """Compares the devices that the plan uses with what torch finds; never starts CUDA.

    Args:
        node: its plan.
        is_cpu_asked: whether the user wants the CPU.

    Returns:
        What the user should know of cards that nobody can use; or nothing.

    Raises:
        NodeError: torch finds others.
    """
    import torch

    if node.devices.kind != "gpu":
        return "" if is_cpu_asked else _passed_over()
    # CUDA shows a process one slice of a GPU (MIG) at most; each rank gets its own.
    has_slices = bool(mig_slices(os.environ))
    found = gpus_of_torch()
    if found < (1 if has_slices else node.devices.count):
        visible = os.environ.get(VISIBLE_CUDA)
        named = "" if visible is None else f" with {VISIBLE_CUDA}={visible!r}"
        raise NodeError(
            f"this node shows {node.devices.count} GPUs{named}, torch can use {found}; check the "
            f"driver and the build of torch {torch.__version__}, or use --devices cpu"
        )
    return ""


def _passed_over() -> str:
    """What to tell of cards that nobody can use; raises NodeError for devices that torch could."""
    kind = accelerator_of_torch()
    if kind:
        raise NodeError(
            f"this node has devices of the kind {kind!r}, which bundlerun does not count; "
            "use --devices cpu to train on the CPU"
        )
    cards = without_driver()
    if not cards:
        return ""
    return (
        f"this node has {len(cards)} GPUs (PCI {', '.join(cards[:2])}) and no driver shows them: "
        "this is the CPU; --devices cpu says so"
    )
