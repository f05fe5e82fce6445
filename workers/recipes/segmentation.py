"""A class for each pixel of an image; models of torchvision's kind, with an auxiliary head or not.

    image (3, side, side) -> the model -> {"out": (classes, side, side), "aux": the same}

The loss is a mean over the pixels that are not ignored: it says its sum and their number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from torch.optim import Optimizer

from bundlerun.launcher.agreement.continuation import has_begun
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import check_named
from bundlerun.launcher.preflight import data_path
from bundlerun.launcher.run_folder.paths import run_paths
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.data.masked_images import LAYOUT, MaskedImages
from bundlerun.workers.optimizer import make_optimizer
from bundlerun.workers.recipe import DataInfo, DataSets
from bundlerun.workers.recipes.outputs import logits_of
from bundlerun.workers.recipes.pixels_scale import MEAN, PIXELS, STD, WHITE, Scale

CLASSES = "classes.txt"
"""A name per line, in order of their numbers."""
_AUX_WEIGHT = 0.5
"""As in torchvision's reference training."""
_MOST_TOLD = 32
"""Classes; of more than these only the mean is told."""
_NUM_LOOKED = 64
_HF_CLASS = "AutoModelForSemanticSegmentation"
_SHAPE = "batch, classes, height, width"


def recipe(config: TrainConfig) -> Segmentation:
    """The recipe for this configuration."""
    return Segmentation(config)


class Segmentation:
    """Images and the classes of their pixels; cross entropy, intersection over union."""

    unit = "images"
    best = ("miou", "max")
    shares = ("miou", "accuracy")

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._root = data_path(config.data)
        self.on_device = Scale()

    def check(self) -> None:
        """Raises ConfigError for an unknown model, or images not laid out as they should be."""
        check_named(self._config.model)
        for part in ("train", "val") if self._config.validate else ("train",):
            if not (self._root / part / "images").is_dir():
                way = ", or use --no-validate" if part == "val" else ""
                raise ConfigError(
                    f"DATA {str(self._root)!r} has no folder '{part}/images'; {LAYOUT}{way}"
                )
        self.num_outputs()

    def num_outputs(self) -> int:
        """Classes, as --num-classes or the file of their names says."""
        named = self._names()
        given = self._config.num_classes
        if named and 0 < given < len(named):
            raise ConfigError(
                f"--num-classes {given} is less than the {len(named)} names in "
                f"{str(self._root / CLASSES)!r}; leave it out, or give {len(named)} or more"
            )
        if not named and not given:
            raise ConfigError(
                f"nothing says how many classes the pixels of DATA {str(self._root)!r} have; give "
                f"--num-classes, or a file {CLASSES} in it with a name per line"
            )
        return given or len(named)

    def open_data(self) -> DataSets:
        """Lists the images; a new run looks at some of the masks."""
        config, count = self._config, self.num_outputs()
        made = [
            MaskedImages(
                self._root / part,
                config.image_size,
                count,
                config.ignore_index,
                is_random=part == "train" and config.augment != "none",
            )
            for part in (("train", "val") if config.validate else ("train",))
        ]
        if not has_begun(run_paths(config.run_dir)):
            for samples in made:
                samples.look(_NUM_LOOKED)
        size = config.image_size
        return DataSets(
            train=made[0],
            val=made[1] if config.validate else None,
            num_outputs=count,
            about={
                "classes": self._names(),
                "ignore_index": config.ignore_index,
                "preprocessing": {
                    "color": "RGB",
                    "resize": [size, size],
                    "interpolation": "bilinear",
                    "antialias": True,
                    "scale": WHITE,
                    "mean": list(MEAN),
                    "std": list(STD),
                },
            },
        )

    def model(self, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
        """The model that --model names, or its stages where a user's file has cut it."""
        name = self._config.model
        return build_model(name, info.num_outputs, hf_class=_HF_CLASS, hf_takes=PIXELS)

    def loss(self, output: object, target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the cross entropies of all pixels that count, and their number.

        Args:
            output: logits (batch, classes, height, width), of any height and width; with those of
                an auxiliary head as "aux", where there is one.
            target: (batch, height, width).
        """
        target = target.long()
        total = self._sum(logits_of(output, _SHAPE), target)
        aux = output.get("aux") if isinstance(output, Mapping) else None
        if isinstance(aux, Tensor):
            total = total + _AUX_WEIGHT * self._sum(aux, target)
        return total, (target != self._config.ignore_index).sum()

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """Pixels of each class that are right, and that are of it or taken for it, summed."""
        logits = _fitted(logits_of(output, _SHAPE), target)
        count, target = logits.shape[1], target.long()
        counts = target != self._config.ignore_index
        found = logits.argmax(dim=1)
        # One bin more takes the pixels that do not count: no size depends on their number.
        is_right = counts & (found == target)
        right = _bins(target, is_right, count)
        union = _bins(target, counts, count) + _bins(found, counts, count) - right
        return {
            **{f"right_{n}": value for n, value in enumerate(right.unbind())},
            **{f"union_{n}": value for n, value in enumerate(union.unbind())},
            "pixels": counts.sum().double(),
        }

    def final_metrics(self, loss: float, means: Mapping[str, float]) -> dict[str, float]:
        """Mean over the classes that occur of intersection over union; right pixels; each class."""
        count = (len(means) - 1) // 2
        unions = [means[f"union_{n}"] for n in range(count)]
        rights = [means[f"right_{n}"] for n in range(count)]
        each = {n: r / u for n, (r, u) in enumerate(zip(rights, unions, strict=True)) if u > 0}
        told = {
            "miou": sum(each.values()) / max(1, len(each)),
            "accuracy": sum(rights) / means["pixels"] if means["pixels"] else 0.0,
        }
        if count <= _MOST_TOLD:
            told |= {f"iou_{n}": value for n, value in each.items()}
        return told

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer that --optimizer names."""
        return make_optimizer(self._config, parameters)

    def _names(self) -> list[str]:
        try:
            text = (self._root / CLASSES).read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as exc:
            raise ConfigError(f"cannot read {str(self._root / CLASSES)!r}: {exc}") from exc
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _sum(self, logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(
            _fitted(logits, target),
            target,
            reduction="sum",
            ignore_index=self._config.ignore_index,
            label_smoothing=self._config.label_smoothing,
        )


def _fitted(logits: Tensor, target: Tensor) -> Tensor:
    """Logits for each pixel of the target: some models give them for every fourth."""
    size = target.shape[1:]
    if logits.shape[2:] == size:
        return logits
    return interpolate(logits, size=list(size), mode="bilinear", align_corners=False)


def _bins(classes: Tensor, counts: Tensor, num_classes: int) -> Tensor:
    """How many of the pixels that count are of each class, float64 (classes,)."""
    # Added up one by one, and not by bincount, which waits for a GPU.
    place = torch.where(counts, classes, num_classes).flatten()
    found = torch.zeros(num_classes + 1, dtype=torch.float64, device=classes.device)
    return found.scatter_add_(0, place, torch.ones_like(place, dtype=torch.float64))[:-1]
