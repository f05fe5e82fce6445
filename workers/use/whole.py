"""The unsplit model of a checkpoint, with its weights, ready to be asked."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.adapters import model_state
from bundlerun.launcher.run_folder.checkpoints import MODEL, Checkpoint
from bundlerun.workers.model.stage import cut_model
from bundlerun.workers.recipe import DataInfo, Recipe
from bundlerun.workers.state.named import load_state_tensors


def whole_model(
    config: TrainConfig, recipe: Recipe, checkpoint: Checkpoint, *, average: bool
) -> nn.Module:
    """The model in CPU memory, in its mode for evaluation; adapters are added to its weights.

    Args:
        config: of the run; how it was cut does not count.
        recipe: of that configuration.
        average: of the weights, in place of them.

    Raises:
        ConfigError: it cannot be built.
        CheckpointError: the checkpoint is of another model.
    """
    plain = replace(config.in_shape(Shape((1,))), lora=0, lora_alpha=0, lora_targets=(), freeze=())
    info = DataInfo(
        num_train=1,
        num_val=0,
        num_outputs=num_outputs(config, recipe, checkpoint),
        about=dict(checkpoint.about),
    )
    (model,) = cut_model(plain, recipe, info, is_loaded_later=True).stages
    if config.precision == "float64":
        model = model.double()
    state = model_state(checkpoint, average=average)
    load_state_tensors(model, None, {MODEL + name: tensor for name, tensor in state.items()})
    return model.eval()


def num_outputs(config: TrainConfig, recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Outputs of the model, as nearly as it can be known without the data; 0: not."""
    known = config.num_classes or len(checkpoint.about.get("classes") or ())
    count = getattr(recipe, "num_outputs", None)
    return known or (int(count()) if count else 0)
