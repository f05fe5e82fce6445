"""Names the classes of images by a trained model, prepared as in the run's validation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.checkpoints import Checkpoint
from bundlerun.workers.data.image_folder import decoded, image_of
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.device.start import DeviceStart
from bundlerun.workers.device.switches import prepare, set_switches
from bundlerun.workers.model.memory_format import arrange
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.recipe import UnreadableSample, load_recipe, model_inputs
from bundlerun.workers.recipes.image_classification import ImageClassification, heads, views
from bundlerun.workers.use.whole import whole_model

_AT_ONCE = 32
_MOST_THREADS = 16
_Row = tuple[list[int], list[float]]
"""Numbers of classes, and their probabilities."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guess:
    """One class for one image.

    number: of the class; probability: from 0 to 1, by softmax.
    """

    number: int
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is said of one image.

    guesses: the likeliest first; none where it could not be read.
    unreadable: why it could not be.
    """

    file: str
    guesses: Sequence[Guess] = ()
    unreadable: str = ""


def predict(
    config: TrainConfig, checkpoint: Checkpoint, files: Sequence[str], *, top: int = 5
) -> Iterator[Answer]:
    """The likeliest classes of each image, in the order of `files`, on the first device.

    Args:
        config: of the run.
        files: images, of any mode and size.
        top: so many classes, or all where there are fewer.

    Raises:
        ConfigError: the recipe is not about images of classes, or the model cannot be built.
        CheckpointError: the checkpoint is of another model.
    """
    recipe = load_recipe(config)
    if not isinstance(recipe, ImageClassification):
        raise ConfigError(
            f"--recipe {config.recipe} of this run does not name the classes of images; use "
            "bundlerun export, and the model in a program of your own"
        )
    prepare(config)
    device = DeviceStart(0).take()
    set_switches(config, device, speaks=True)
    model = whole_model(config, recipe, checkpoint, average=config.model_ema).to(device)
    memory_format = arrange(model, config.memory_format, has_gpus=door.is_gpu(device))
    arithmetic = Arithmetic(device, config.precision, memory_format)
    load = partial(_loaded, config, views(config)[1])
    threads = min(os.cpu_count() or 1, _MOST_THREADS)
    with ThreadPoolExecutor(threads) as pool, torch.inference_mode():
        for some in _groups(files):
            found = list(pool.map(load, some))
            pixels = [each for each in found if isinstance(each, Tensor)]
            rows: Iterator[_Row] = iter(())
            if pixels:
                images = arithmetic.placed(torch.stack(pixels))
                inputs = tuple(map(arithmetic.placed, model_inputs(recipe, (images,))))
                with arithmetic.autocast():
                    logits, _ = heads(model(*inputs))
                best = logits.float().softmax(1).topk(min(top, logits.shape[1]))
                rows = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            yield from (_answer(file, each, rows) for file, each in zip(some, found, strict=True))


def _groups(files: Sequence[str]) -> Iterator[Sequence[str]]:
    return (files[first : first + _AT_ONCE] for first in range(0, len(files), _AT_ONCE))


def _loaded(config: TrainConfig, view: Any, file: str) -> Tensor | str:  # noqa: ANN401
    """Pixels (3, height, width) as the model sees them; or why there are none."""
    try:
        pixels: Tensor = view(decoded(file, partial(image_of, is_fast=config.decode == "fast")))
        return pixels
    except UnreadableSample as exc:
        return str(exc)


def _answer(file: str, found: Tensor | str, rows: Iterator[_Row]) -> Answer:
    if isinstance(found, str):
        return Answer(file=file, unreadable=found)
    numbers, shares = next(rows)
    guesses = [Guess(number=n, probability=p) for n, p in zip(numbers, shares, strict=True)]
    return Answer(file=file, guesses=guesses)
