"""Boxes around things; models of torchvision's kind, with their own losses.

    images, targets -> the model in training   -> {"loss_classifier": ..., "loss_box_reg": ...}
                       the model in evaluation -> [{"boxes": ..., "labels": ..., "scores": ...}]

What a loss is a mean over is the model's business; that of a step is the mean over its images of
what the models says of each micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.agreement.continuation import has_begun
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import OfLibrary, check_named, parse_model
from bundlerun.launcher.preflight import data_path
from bundlerun.launcher.run_folder.paths import run_paths
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.data.boxes.annotations import (
    Annotations,
    Categories,
    Extra,
    ImageNotes,
    read_annotations,
    read_categories,
)
from bundlerun.workers.data.boxes.images import BoxedImages, is_learnt_from
from bundlerun.workers.data.boxes.layout import Part, Paths, find_part
from bundlerun.workers.optimizer import make_optimizer
from bundlerun.workers.recipe import DataInfo, DataSets
from bundlerun.workers.recipes.average_precision import average_precision, matches, means

_MOST_TOLD = 32
"""Classes; of more than these only the means are told."""
_NUM_POINTS = 17
"""Of torchvision's models."""
_WHITE = 255
_FOUND = ("boxes", "labels", "scores")


def recipe(config: TrainConfig) -> Detection:
    """The recipe for this configuration."""
    return Detection(config)


class Detection:
    """Images of any size and the boxes in them; the model's own losses, average precision."""

    unit = "images"
    best = ("map", "max")
    shares = ("map", "map_50", "map_75")
    shapes_vary = True

    extra: Extra | None
    """What the model learns besides boxes: a recipe of your own that inherits from this one may
    say "masks" or "keypoints"."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._root = data_path(config.data)
        self.extra = getattr(type(self), "extra", None) or _extra_of(config.model)

    def check(self) -> None:
        """Raises ConfigError for an unknown model, or data that is not laid out as it should be."""
        check_named(self._config.model)
        if self._config.validate:
            self._paths("val")
        self.num_outputs()

    def num_outputs(self) -> int:
        """Classes with the background: --num-classes, or as many as there are categories."""
        return self._config.num_classes or len(self._categories().labels) + 1

    def open_data(self) -> DataSets:
        """Reads the annotations; a new run looks whether the images are there."""
        config, categories = self._config, self._categories()
        train, remarks = self._opened("train", categories)
        val = None
        if config.validate:
            val, more = self._opened("val", categories)
            remarks += more
        if not has_begun(run_paths(config.run_dir)):
            for samples in (train, *([val] if val else ())):
                samples.check_there()
        return DataSets(
            train=train,
            val=val,
            num_outputs=self.num_outputs(),
            about={
                "classes": ["background", *categories.by_label[1:]],
                "boxes": "left, top, right and bottom in pixels of the image",
                "preprocessing": {"color": "RGB", "scale": _WHITE},
            },
            remarks=remarks,
        )

    def model(self, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
        """The model that --model names, or its stages where a user's file has cut it."""
        return build_model(self._config.model, info.num_outputs)

    def on_device(self, images: list[Tensor], targets: object) -> tuple[list[Tensor], object]:
        """Images as numbers from 0 to 1; the models normalise them."""
        return [_scaled(image) for image in images], targets

    def loss(self, output: object, target: Sequence[Mapping[str, Tensor]]) -> Tensor | None:
        """The sum of the model's losses; None where it tells none, as in evaluation.

        Args:
            output: of the model.
            target: of each image, see `bundlerun.workers.data.boxes.images`.
        """
        losses = _losses(output)
        if losses is None:
            _detections(output)
            return None
        return torch.stack([value.reshape(()) for value in losses.values()]).sum()

    def metrics(self, output: object, target: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Each of the model's losses, times the images."""
        losses = _losses(output) or {}
        return {name: value.detach() * len(target) for name, value in losses.items()}

    def evidence(self, output: object, target: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Which detections of a validation are right."""
        rows = [matches(f, t) for f, t in zip(_detections(output), target, strict=True)]
        return {name: torch.cat([each[name] for each in rows]) for name in rows[0]}

    def judged(self, evidence: Mapping[str, Tensor]) -> dict[str, float]:
        """Means of the average precision, and that of each class."""
        found = average_precision(evidence)
        each = {f"ap_{label}": float(value.mean()) for label, value in found.items()}
        return means(found) | (each if len(each) <= _MOST_TOLD else {})

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer that --optimizer names."""
        return make_optimizer(self._config, parameters)

    # --- data

    def _paths(self, part: Part) -> Paths:
        prefix = "person_keypoints" if self.extra == "keypoints" else "instances"
        return find_part(self._root, part, prefix)

    def _categories(self) -> Categories:
        found = read_categories(self._paths("train").annotations, self._config.num_classes)
        count = len(found.points)
        if self.extra == "keypoints" and not count:
            raise ConfigError(
                f"{str(self._paths('train').annotations)!r} has no category with key points, or "
                "several with others; all categories have to name the same 'keypoints'"
            )
        if self.extra == "keypoints" and count != _NUM_POINTS and self._is_torchvisions:
            raise ConfigError(
                f"--model {self._config.model!r} has {_NUM_POINTS} key points, the categories "
                f"{count}; give a path/to/file.py:build that makes the model for these"
            )
        return found

    @property
    def _is_torchvisions(self) -> bool:
        return isinstance(parse_model(self._config.model), OfLibrary)

    def _opened(self, part: Part, categories: Categories) -> tuple[BoxedImages, list[str]]:
        paths, is_train = self._paths(part), part == "train"
        if not is_train:
            _check_alike(read_categories(paths.annotations), categories, paths)
        read = read_annotations(paths.annotations, categories, self.extra)
        images = read.images
        if is_train:
            images = [notes for notes in read.images if is_learnt_from(notes, self.extra)]
        if not images:
            what = "with boxes to learn from" if is_train else "to validate on"
            raise ConfigError(f"{str(paths.annotations)!r} has no images {what}")
        samples = BoxedImages(
            paths,
            images,
            categories,
            extra=self.extra,
            is_random=is_train and self._config.augment != "none",
            is_judged=not is_train,
        )
        return samples, _remarks(paths, read, images)


def _check_alike(val: Categories, train: Categories, paths: Paths) -> None:
    """Another name for a number would be another thing under the same label."""
    for number, name in val.names.items():
        if train.names.get(number, name) != name:
            raise ConfigError(
                f"category {number} is {name!r} in {str(paths.annotations)!r}, and "
                f"{train.names[number]!r} in the training data; give both the same categories"
            )


def _remarks(paths: Paths, read: Annotations, used: Sequence[ImageNotes]) -> list[str]:
    found, file = [], str(paths.annotations)
    if len(used) < len(read.images):
        count = len(read.images) - len(used)
        found.append(f"{count} of {len(read.images)} images of {file!r} have nothing to learn from")
    if read.num_without_area:
        found.append(f"{read.num_without_area} boxes of {file!r} have no area in their image")
    return [f"{line}; they are left out" for line in found]


def _extra_of(model: str) -> Extra | None:
    known = parse_model(model)
    if not isinstance(known, OfLibrary):
        return None
    if known.name.startswith("maskrcnn"):
        return "masks"
    return "keypoints" if known.name.startswith("keypointrcnn") else None


def _scaled(image: Tensor) -> Tensor:
    return image.to(torch.float32).div_(_WHITE) if image.dtype is torch.uint8 else image


def _losses(output: object) -> Mapping[str, Tensor] | None:
    """The losses of an output, by name; None where it has none."""
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Mapping):
        output = output[0]  # as models that were scripted have it: losses and detections
    if not isinstance(output, Mapping) or not output:
        return None
    if all(isinstance(value, Tensor) and value.numel() == 1 for value in output.values()):
        return output
    return None


def _detections(output: object) -> Sequence[Mapping[str, Tensor]]:
    if isinstance(output, tuple) and len(output) == 2 and isinstance(output[0], Mapping):
        output = output[1]
    if isinstance(output, (list, tuple)) and all(
        isinstance(each, Mapping) and all(name in each for name in _FOUND) for each in output
    ):
        return output
    raise ConfigError(
        f"the model returns a {type(output).__name__}{_inside(output)}; a detection model is "
        "called with a list of images and a list of targets, and returns a dict of losses in "
        "training, and in evaluation a list with a dict of boxes, labels and scores for each image"
    )


def _inside(output: object) -> str:
    items: Any = output
    if isinstance(output, Mapping):
        return f" with {', '.join(map(repr, items))}" if items else ""
    if isinstance(output, (list, tuple)) and items:
        return f" of {len(items)}, the first a {type(items[0]).__name__}"
    return ""
