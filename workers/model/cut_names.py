"""Where a configuration cuts its model, by the first names of the places."""

from __future__ import annotations

import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits.models import choose
from bundlerun.workers.model.stage import example_inputs, unfilled_model
from bundlerun.workers.recipe import Recipe


def names_of_cuts(config: TrainConfig, recipe: Recipe) -> tuple[str, ...]:
    """The names at which the chunks after the first begin; reads two samples, makes no parameter.

    Of a list of modules the names are the numbers of the modules.

    Raises:
        ConfigError: the data cannot be read, or the model cannot be cut as asked.
    """
    if config.num_chunks == 1:
        return ()
    example, info = example_inputs(config, recipe)
    widths = config.shape.widths
    chunks = Chunks(len(widths), config.chunks)
    with torch.device("meta"):
        model = unfilled_model(recipe, info)
        if not isinstance(model, nn.Module):
            return tuple(str(number) for number in range(1, config.num_chunks))
        shares = [widths[chunks.stage_of(chunk)] for chunk in range(chunks.num_chunks)]
        chosen = choose(model, config.cutter, cut=config.cut, shares=shares, inputs=example.inputs)
        places = chosen.way.places(example.inputs).places
    first = {name: place.names[0] for place in places for name in place.names}
    return tuple(first.get(name, name) for name in chosen.cuts)
