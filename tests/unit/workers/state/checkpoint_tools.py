"""Small checkpoints for tests."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.state.checkpoint import Checkpoints


def progress(step: int, **metrics: float) -> Progress:
    return Progress(
        step=step,
        epoch=1,
        step_in_epoch=3,
        samples_seen=64 * step,
        metrics=metrics,
        score=next(iter(metrics.values()), None),
    )


def write(
    checkpoints: Checkpoints,
    step: int,
    parts: Sequence[Mapping[str, Tensor]] | None = None,
    **metrics: float,
) -> Path:
    stages = parts or [
        {"model.front": torch.full((40,), float(step))},
        {"model.rear": torch.full((3, 5), float(step)), "model.count": torch.tensor(step)},
    ]
    written = [
        checkpoints.write_part(step, f"stage-{i}", tensors) for i, tensors in enumerate(stages)
    ]
    return checkpoints.commit(step, written, progress(step, **metrics))


def newest_step(checkpoints: Checkpoints) -> int | None:
    found = checkpoints.newest()
    return None if found is None else found.step


def flip(content: bytes, position: int) -> bytes:
    changed = content[position] ^ (1 << random.Random(position).randrange(8))
    return content[:position] + bytes([changed]) + content[position + 1 :]
