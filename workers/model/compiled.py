"""What torch.compile makes of a stage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bundlerun.launcher.choices import CompileMode
from bundlerun.launcher.config import TrainConfig
from bundlerun.splits.stage import Forward


def compiled(
    forward: Forward, mode: CompileMode, backend: str | Callable[..., Any] = "inductor"
) -> Forward:
    """`forward` compiled in a mode of torch's; as it is where that is "off".

    The first size of a micro-batch compiles for itself, the second one for all others: an epoch's
    last micro-batch may have any size, and costs one more compilation in a run. A single sample is
    a size of its own.
    """
    if mode == "off":
        return forward
    made: Forward = torch.compile(forward, mode=mode, backend=backend)
    return made


def begin_replays(config: TrainConfig) -> None:
    """Lets CUDA graphs write where micro-batches of before have their results."""
    if config.has_graphs:
        torch.compiler.cudagraph_mark_step_begin()
