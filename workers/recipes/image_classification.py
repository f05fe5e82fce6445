"""The default recipe: a model by name on images in class folders or shards, or synthetic ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import check_named
from bundlerun.launcher.preflight import SYNTHETIC, data_path
from bundlerun.launcher.run_folder.paths import run_paths
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.data.augment.images import ERASED, ErasingView, erased, policy_of
from bundlerun.workers.data.augment.mixing import BOX, SHARE, Mix, is_mixed, mixed, soft_target
from bundlerun.workers.data.image_folder import ImageSamples, check_folder
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.data.shards.classes import names_of
from bundlerun.workers.data.shards.find import has_shards
from bundlerun.workers.data.shards.opened import check_shards, open_shards
from bundlerun.workers.data.views import MiddleView, RandomView, View
from bundlerun.workers.optimizer import make_optimizer
from bundlerun.workers.recipe import DataInfo, DataSets
from bundlerun.workers.recipes.pixels_scale import MEAN, PIXELS, STD, WHITE, Scale

SYNTHETIC_CLASSES = 10
_PATTERN_SIZE = 4
# Of one auxiliary head (Inception v3) and of two (GoogLeNet), as in the papers' training.
_AUX_WEIGHTS = {1: 0.4, 2: 0.3}


def recipe(config: TrainConfig) -> ImageClassification:
    """The recipe for this configuration."""
    return ImageClassification(config)


class ImageClassification:
    """Images (3, height, width), a class for each; cross entropy, top-1 and top-5."""

    unit = "images"
    metric_names = ("top1", "top5")
    shares = ("top1", "top5")

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._root = data_path(config.data)
        # Pixels are normalised where the model computes; synthetic numbers are left as they are.
        self._scale = Scale()

    def check(self) -> None:
        """Raises ConfigError for an unknown model, or images not laid out as they should be."""
        check_named(self._config.model)
        if self._is_synthetic:
            return
        if has_shards(self._root):
            check_shards(self._root, needs_val=self._config.validate)
        else:
            classes = check_folder(self._root, needs_val=self._config.validate)
            self._check_num_classes(len(classes))

    def num_outputs(self) -> int:
        """Of the model, without opening the data."""
        if self._config.num_classes or self._is_synthetic:
            # Needs no look at a disk.
            return self._config.num_classes or SYNTHETIC_CLASSES
        if has_shards(self._root):
            return len(names_of(self._root))  # 0: only the shards can say
        return len(check_folder(self._root, needs_val=self._config.validate))

    def open_data(self) -> DataSets:
        """Lists all images, where no earlier start has; opens none."""
        train, val = views(self._config)
        if self._is_synthetic:
            return self._synthetic()
        if has_shards(self._root):
            return self._shards((train, val))
        classes = check_folder(self._root, needs_val=self._config.validate)
        self._check_num_classes(len(classes))
        paths = run_paths(self._config.run_dir)
        kept_in = paths.image_lists if paths else None
        has_val = self._config.validate
        images = partial(ImageSamples, kept_in=kept_in, is_fast=self._config.decode == "fast")
        train_images = images(self._root / "train", train)
        val_images = images(self._root / "val", val) if has_val else None
        return DataSets(
            train=train_images,
            val=val_images,
            mix=self._mix,
            remarks=_remarks([*train_images.hidden, *(val_images.hidden if val_images else ())]),
            num_outputs=self._config.num_classes or len(classes),
            about={"classes": classes, "preprocessing": preprocessing(self._config)},
        )

    def on_device(self, images: Tensor, how: Mapping[str, Tensor] | None = None) -> Tensor:
        """Pixels as the model takes them, with what is to be erased and mixed in training."""
        found = self._scale(images)
        if how is None:
            return found
        if ERASED in how:
            found = erased(found, how[ERASED])
        return mixed(found, how[BOX], how[SHARE]) if BOX in how else found

    def model(self, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
        """The model that --model names, or its stages where a user's file has cut it."""
        return build_model(self._config.model, info.num_outputs, hf_takes=PIXELS)

    def loss(self, output: object, target: Tensor | dict[str, Tensor]) -> Tensor:
        """Mean cross entropy; auxiliary heads are added with their usual weight."""
        logits, auxiliary = heads(output)
        target = _as_tensor(target, logits)
        total = self._cross_entropy(logits, target)
        for head in auxiliary:
            # By number of heads, which tells the two models apart.
            total = total + _AUX_WEIGHTS[len(auxiliary)] * self._cross_entropy(head, target)
        return total

    def metrics(self, output: object, target: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
        """How many are right at the first guess, and within five.

        Of a mixed image the class that it has most of is right, as in torchvision's reference.
        """
        logits, _ = heads(output)
        classes = _as_tensor(target, logits)
        if is_mixed(target):
            classes = classes.max(1).indices
        # With fewer than five classes, all of them are within five.
        guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices
        right = guesses == classes.unsqueeze(1)
        # No two guesses are the same: at most one of them is right.
        return {"top1": right.select(1, 0).sum(), "top5": right.sum()}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer that --optimizer names."""
        return make_optimizer(self._config, parameters)

    @property
    def _mix(self) -> Mix | None:
        config = self._config
        return Mix(config.mixup_alpha, config.cutmix_alpha) if config.mixes else None

    @property
    def _is_synthetic(self) -> bool:
        return self._config.data == SYNTHETIC

    def _synthetic(self) -> DataSets:
        config = self._config
        num_classes = config.num_classes or SYNTHETIC_CLASSES
        num_val = max(1, config.synthetic_samples // 4)
        train = SyntheticImages(config.synthetic_samples, num_classes, config.image_size)
        # Numbered after the training images, so that no image is in both.
        val = SyntheticImages(num_val, num_classes, config.image_size, first=len(train))
        return DataSets(
            train=train,
            val=val if config.validate else None,
            num_outputs=num_classes,
            mix=self._mix,
        )

    def _shards(self, both: tuple[View, View]) -> DataSets:
        config = self._config
        paths = run_paths(config.run_dir)
        found = open_shards(
            self._root,
            both,
            needs_val=config.validate,
            is_fast=config.decode == "fast",
            window=config.shuffle_window,
            num_classes=config.num_classes,
            kept_in=paths.shard_indexes if paths else None,
        )
        return DataSets(
            train=found.train,
            val=found.val,
            mix=self._mix,
            num_outputs=found.num_classes,
            remarks=found.remarks,
            about={"classes": found.classes, "preprocessing": preprocessing(config)},
        )

    def _cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target, label_smoothing=self._config.label_smoothing)

    def _check_num_classes(self, found: int) -> None:
        if 0 < self._config.num_classes < found:
            raise ConfigError(
                f"--num-classes {self._config.num_classes} is less than the {found} class folders "
                f"of {str(self._root / 'train')!r}; leave it out, or give {found} or more"
            )


def _remarks(hidden: Sequence[str]) -> list[str]:
    if not hidden:
        return []
    return [
        f"{len(hidden)} hidden files and folders are left out, such as {hidden[0]!r}: they are no "
        "images, and no classes"
    ]


def heads(output: object) -> tuple[Tensor, list[Tensor]]:
    """The logits of a torchvision model's output, and those of its auxiliary heads."""
    if not isinstance(output, Tensor) and isinstance(output, Mapping):  # of transformers
        output = output.get("logits")
    if isinstance(output, Tensor):
        return output, []
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        auxiliary = [head for head in output[1:] if isinstance(head, Tensor)]
        if len(auxiliary) in (0, *_AUX_WEIGHTS):
            return output[0], auxiliary
    raise ConfigError(
        f"the model returns {type(output).__name__}, not logits (batch, classes) with at most "
        f"{max(_AUX_WEIGHTS)} auxiliary heads; write a --recipe with a loss for it"
    )


def preprocessing(config: TrainConfig) -> dict[str, Any]:
    """What is done to an image before the model sees it, in validation and after training.

    Image in RGB, `resize` (one number: the shorter side), the middle `center_crop`, each of
    0 to 255 divided by 255, then normalised by `mean` and `std`.
    """
    return {
        "color": "RGB",
        "resize": config.val_resize,
        "interpolation": config.interpolation,
        "antialias": True,
        "center_crop": config.val_crop,
        "scale": WHITE,
        "mean": list(MEAN),
        "std": list(STD),
    }


def views(config: TrainConfig) -> tuple[View, View]:
    """What the model sees of an image, in training and in validation; then it is normalised."""
    val = MiddleView(config.val_resize, config.val_crop, interpolation=config.interpolation)
    size, policy = config.image_size, policy_of(config)
    view: View
    if config.augment != "none":
        view = RandomView(size, interpolation=config.interpolation, policy=policy)
    else:
        view = MiddleView([size, size], size, interpolation=config.interpolation, policy=policy)
    return (ErasingView(view, config.random_erase) if config.random_erase else view), val


def _as_tensor(target: Tensor | dict[str, Tensor], logits: Tensor) -> Tensor:
    """The class of each image, (batch,), or how much of each, (batch, classes)."""
    if not is_mixed(target):
        assert isinstance(target, Tensor)
        return target
    dtype = logits.dtype if logits.dtype is torch.float64 else torch.float32
    return soft_target(target, logits.shape[1], dtype)


class SyntheticImages:
    """Images that need no files and can be learnt: a coarse pattern per class, under noise.

    Args:
        num_samples: length.
        num_classes: sample i has class i mod num_classes.
        image_size: side, pixels.
        first: number of the first image; images of different numbers have different noise.
    """

    def __init__(
        self, num_samples: int, num_classes: int, image_size: int, *, first: int = 0
    ) -> None:
        self._num_samples = num_samples
        self._image_size = image_size
        self._first = first
        # The same patterns for training and validation: else nothing could be learnt.
        generator = torch.Generator().manual_seed(mix_seed(num_classes))
        shape = (num_classes, 3, _PATTERN_SIZE, _PATTERN_SIZE)
        self._patterns = torch.randn(shape, generator=generator)

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int, /) -> tuple[Tensor, int]:
        """The image and its class; the same for an index, always."""
        number = self._first + index
        target = number % len(self._patterns)
        size = (self._image_size, self._image_size)
        # By number, whatever has been read before: the same image in each process and epoch.
        generator = torch.Generator().manual_seed(mix_seed(number))
        noise = torch.randn((3, *size), generator=generator)
        return interpolate(self._patterns[target][None], size)[0] + noise, target
