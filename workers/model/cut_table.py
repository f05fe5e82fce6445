"""Where a model can be cut, as a person or a program reads it."""

from __future__ import annotations

import json
from dataclasses import asdict

import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.cutter import Places
from bundlerun.splits.models import easiest
from bundlerun.workers.model.stage import example_inputs, unfilled_model
from bundlerun.workers.recipe import Recipe


def cut_table(config: TrainConfig, recipe: Recipe, *, as_json: bool) -> str:
    """The names that --cut takes; reads two samples, makes no parameter.

    Raises:
        ConfigError: the data cannot be read, or the model cannot be cut at all.
    """
    example, info = example_inputs(config, recipe)
    with torch.device("meta"):
        model = unfilled_model(recipe, info)
        if not isinstance(model, nn.Module):
            raise ConfigError(
                f"{config.model} is already cut into {len(model)} parts; it needs no --cut"
            )
        name, way, why = easiest(model, config.cutter, example.inputs)
        places = way.places(example.inputs)
    if as_json:
        found = {"cutter": name, "why": why, "num_samples": example.num_samples, **asdict(places)}
        return json.dumps(found, indent=2)
    return "\n".join([f"cut by {name}: {why}", *table_lines(places, example.num_samples)])


def table_lines(places: Places, num_samples: int) -> list[str]:
    """A line per place, under a line of headings.

    Args:
        places: of a model that is called with `num_samples` samples.
    """
    names = [" = ".join(place.names) for place in places.places]
    width = max(map(len, [*names, "cut"]))
    lines = [f"{'cut':{width}}  parameters before  operations before  crosses"]
    for name, place in zip(names, places.places, strict=True):
        share = place.operations / places.operations if places.operations else None
        done = "not counted" if share is None else f"{share:.1%}"
        lines.append(
            f"{name:{width}}  {place.parameter_bytes / 1e6:14.2f} MB  {done:>17}  "
            f"{place.crossing_bytes / num_samples / 1e6:.3f} MB"
        )
    total = f"{places.operations / num_samples / 1e9:.3g} GFLOP for a sample forward"
    return [*lines, f"in all: {places.parameter_bytes / 1e6:.2f} MB of parameters, {total}"]
