"""Why a step cannot end before all its sums are there."""

from __future__ import annotations

import torch
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.device.accelerator import is_gpu
from bundlerun.workers.optim.parts import why_not_in_parts


def why_not_behind(
    config: TrainConfig, optimizer: Optimizer, device: torch.device, *, needs_norms: bool
) -> str:
    """In words that may follow a colon; empty: it can.

    Args:
        config: of the run.
        optimizer: of the stage.
        device: of this rank.
        needs_norms: whether the norm over all gradients decides on a step.
    """
    if is_gpu(device):
        return "it is for ranks on the CPU; those on GPUs do without it so far"
    if config.clip_norm:
        return "--clip-norm needs the norm over all gradients first; use --clip-norm 0"
    if needs_norms:
        return (
            f"--on-nan {config.on_nan} and a loss scale that adapts look at all gradients first; "
            "use --on-nan stop"
        )
    if config.verify_replicas:
        return "--verify-replicas compares all state after each step"
    if config.compile != "off":
        return f"--compile={config.compile} makes a stage one piece, which reads all at once"
    return why_not_in_parts(optimizer)
