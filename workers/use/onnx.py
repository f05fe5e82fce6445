"""A trained model of images as an ONNX file; torch exports it, with packages that it needs."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.checkpoints import Checkpoint
from bundlerun.workers.recipe import Recipe, load_recipe
from bundlerun.workers.recipes.image_classification import ImageClassification, heads
from bundlerun.workers.recipes.segmentation import Segmentation
from bundlerun.workers.use.whole import whole_model

INPUT, OUTPUT = "images", "logits"
_MOST_BYTES = 2 * 10**9
"""Of a single file, by its format."""


class Logits(nn.Module):
    """A model of images, with its logits as the only output."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, classes, ...) of normalised images (batch, 3, height, width)."""
        found = self.model(images)
        if not isinstance(found, Tensor) and "out" in found:  # of segmentation
            out: Tensor = found["out"]
            return out
        return heads(found)[0]


def write(config: TrainConfig, checkpoint: Checkpoint, path: Path, *, average: bool) -> None:
    """Writes the model, for any number of normalised images of the size of validation.

    Raises:
        ConfigError: the recipe is not about images, or the model cannot be exported.
        CheckpointError: the checkpoint is of another model.
    """
    recipe = load_recipe(config)
    side = _side(config, recipe)
    model = Logits(whole_model(config, recipe, checkpoint, average=average)).float()
    num_bytes = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    if num_bytes > _MOST_BYTES:
        raise ConfigError(
            f"the model has {num_bytes / 1e9:.1f} GB, and an ONNX file holds 2; use .safetensors"
        )
    # Two: a batch of one would be taken for a size that never changes.
    example = torch.zeros(2, 3, side, side)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own code
        try:
            torch.onnx.export(
                model,
                (example,),
                path,
                dynamo=True,
                external_data=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as exc:
            first = (str(exc).strip() or type(exc).__name__).splitlines()[0]
            raise ConfigError(
                f"torch cannot export this model to ONNX: {first}; use .safetensors"
            ) from exc


def _side(config: TrainConfig, recipe: Recipe) -> int:
    if isinstance(recipe, ImageClassification):
        return config.val_crop
    if isinstance(recipe, Segmentation):
        return config.image_size
    raise ConfigError(
        f"--recipe {config.recipe} of this run is not about images of one size, and what its model "
        "is called with is not known here; use .safetensors, and torch.onnx.export in a program "
        "of your own"
    )
