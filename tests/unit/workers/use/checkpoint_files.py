"""Checkpoints of models that nobody has trained."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import MODEL, Progress
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.recipes.image_classification import preprocessing
from bundlerun.workers.state.checkpoint import Checkpoints

CLASSES = ["ape", "bat", "cat"]


def checkpoint_of(folder: Path, name: str, **options: object) -> nn.Module:
    """Writes one of the model `name` into the run folder; returns the model."""
    torch.manual_seed(0)
    model = build_model(name, len(CLASSES))
    assert isinstance(model, nn.Module)
    config = TrainConfig(data="synthetic", model=name, image_size=32, **options)  # type: ignore[arg-type]
    about = {"classes": CLASSES, "preprocessing": preprocessing(config)}
    written = Checkpoints(RunPaths(folder), keep=1, config=config, about=about)
    tensors = {MODEL + n: t.clone() for n, t in model.state_dict().items()}
    part = written.write_part(3, "stage-0", tensors)
    written.commit(3, [part], Progress(step=3, epoch=1, step_in_epoch=0, samples_seen=9))
    return model.eval()
