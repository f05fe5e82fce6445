"""What models see of images: sizes, what is random about them, and what is mixed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bundlerun.launcher.choices import Augment, AutoAugment, Decode, Interpolation
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import OF_IMAGES, RECIPES
from bundlerun.launcher.options.bounds import at_least
from bundlerun.launcher.options.declared import flag_of, option, options_of
from bundlerun.launcher.training.optim import OptimConfig

_IMAGES = "images"
_MAGNITUDES = 31
_SEVERITIES = 10
_RESIZE = 256 / 224
"""Side that an image is resized to over that of its middle; usual since AlexNet."""
_OF_CLASSES = (
    "val_resize_size",
    "val_crop_size",
    "interpolation",
    "auto_augment",
    "random_erase",
    "mixup_alpha",
    "cutmix_alpha",
)
"""What only the recipe of image classification does."""


@dataclass(frozen=True, slots=True, kw_only=True, init=False, repr=False, eq=False)
class ImageConfig(OptimConfig):
    """What becomes of an image before the model sees it.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    image_size: int = option(
        224, "side of the image, pixels; in training", group=_IMAGES, parse=int
    )
    val_resize_size: int = option(
        0,
        "in validation, the shorter side of the image is resized to this (0: 256/224 of "
        "--val-crop-size)",
        group=_IMAGES,
        parse=int,
    )
    val_crop_size: int = option(
        0, "side of the middle that is validated on (0: --image-size)", group=_IMAGES, parse=int
    )
    interpolation: Interpolation = option(
        "bilinear",
        "how images are resized, and turned by --auto-augment",
        group=_IMAGES,
        choices=get_args(Interpolation),
    )
    augment: Augment = option(
        "imagenet",
        "imagenet: random resized crop and flip; none: resize only",
        group=_IMAGES,
        choices=get_args(Augment),
    )
    auto_augment: AutoAugment = option(
        "none",
        "what is done at random to each training image besides: ra (RandAugment), ta-wide "
        "(TrivialAugment), augmix, or AutoAugment's policy for imagenet, cifar10 or svhn",
        group=_IMAGES,
        choices=get_args(AutoAugment),
    )
    ra_magnitude: int = option(9, "magnitude of --auto-augment ra", group=_IMAGES, parse=int)
    augmix_severity: int = option(3, "severity of --auto-augment augmix", group=_IMAGES, parse=int)
    random_erase: float = option(
        0.0,
        "share of the training images that have a random part erased",
        group=_IMAGES,
        parse=float,
    )
    mixup_alpha: float = option(
        0.0,
        "mixes each training image with another of its micro-batch; the share is drawn from "
        "Beta(alpha, alpha) (0: no mixup)",
        group=_IMAGES,
        parse=float,
    )
    cutmix_alpha: float = option(
        0.0,
        "pastes a part of another image of the micro-batch, likewise (0: no cutmix; with both, "
        "each micro-batch has one of them)",
        group=_IMAGES,
        parse=float,
    )
    ra_reps: int = option(
        1,
        "times that an epoch takes each of its training samples, with other random changes; it has "
        "as many fewer of them (repeated augmentation)",
        group=_IMAGES,
        parse=int,
        kept=True,
    )
    decode: Decode = option(
        "fast",
        "JPEG files by simplejpeg, where it is installed, and torch (fast: within 1 of 255 of the "
        "other), or all by Pillow (exact: as torchvision's ImageFolder)",
        group=_IMAGES,
        choices=get_args(Decode),
    )

    def __post_init__(self) -> None:
        OptimConfig.__post_init__(self)  # not super(): slots make a class anew
        at_least(1, self, "image_size", "ra_reps")
        at_least(0, self, "val_resize_size", "val_crop_size", "ra_magnitude")
        at_least(0, self, "random_erase", "mixup_alpha", "cutmix_alpha")
        if self.random_erase > 1:
            raise ConfigError(f"--random-erase {self.random_erase} must be 1 or less")
        if self.ra_magnitude >= _MAGNITUDES:
            raise ConfigError(
                f"--ra-magnitude {self.ra_magnitude} must be {_MAGNITUDES - 1} or less"
            )
        if not 1 <= self.augmix_severity <= _SEVERITIES:
            raise ConfigError(
                f"--augmix-severity {self.augmix_severity} must be 1 to {_SEVERITIES}"
            )
        if self.mixes and self.microbatch_size == 1:
            raise ConfigError(
                "--mixup-alpha and --cutmix-alpha mix the images of a micro-batch, and with "
                "--microbatch-size 1 there is one; use 2 or more"
            )
        if self.auto_augment == "augmix" and self.interpolation == "bicubic":
            raise ConfigError(
                "--auto-augment augmix turns tensors, which torchvision does not with "
                "--interpolation bicubic; use bilinear"
            )
        self._check_recipe()

    def _check_recipe(self) -> None:
        # A recipe of the user's own may do anything with them.
        if self.recipe not in RECIPES or self.recipe == OF_IMAGES:
            return
        for field in options_of(ImageConfig):
            if field.name in _OF_CLASSES and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"{flag_of(field.name)} is for --recipe {OF_IMAGES}, and this is "
                    f"{self.recipe}; leave it out"
                )

    @property
    def mixes(self) -> bool:
        """Whether images are mixed."""
        return bool(self.mixup_alpha or self.cutmix_alpha)

    @property
    def val_crop(self) -> int:
        """Side of the image in validation, pixels."""
        return self.val_crop_size or self.image_size

    @property
    def val_resize(self) -> int | list[int]:
        """What an image is resized to in validation: its shorter side, or [height, width]."""
        if self.val_resize_size:
            return self.val_resize_size
        if self.augment == "none":
            return [self.val_crop, self.val_crop]
        return round(self.val_crop * _RESIZE)
