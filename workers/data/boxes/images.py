"""Images, each of its own size, with what is known of the things in them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.boxes.annotations import Categories, Extra, ImageNotes
from bundlerun.workers.data.boxes.layout import Paths
from bundlerun.workers.data.boxes.masks import mask_of
from bundlerun.workers.data.image_folder import decoded
from bundlerun.workers.data.image_index import walk
from bundlerun.workers.data.pixels import as_rgb

Target = dict[str, Tensor]


class BoxedSample(NamedTuple):
    """One image, what a model learns of it, and what its detections are compared with.

    Args:
        image: uint8 (3, height, width).
        target: `boxes` float32 (n, 4) and `labels` int64 (n,), as torchvision's models take them;
            with `masks` uint8 (n, height, width) or `keypoints` float32 (n, points, 3). No crowds.
        truth: `image`, its number; in validation also `boxes`, `labels` and `crowds` of all.
    """

    image: Tensor
    target: Target
    truth: Target


class BoxedImages:
    """Samples of a file of annotations, those of training mirrored half of the times if asked.

    Args:
        paths: of the annotations, and the folder of the images.
        images: what the annotations say.
        categories: of the things.
        extra: what each target has besides boxes and labels.
        is_random: whether to mirror.
        is_judged: whether detections are compared with what is there.
    """

    def __init__(
        self,
        paths: Paths,
        images: Sequence[ImageNotes],
        categories: Categories,
        *,
        extra: Extra | None = None,
        is_random: bool,
        is_judged: bool,
    ) -> None:
        self._paths = paths
        self._images = images
        self._extra = extra
        self._categories = categories
        self._is_random = is_random
        self._is_judged = is_judged

    def __len__(self) -> int:
        return len(self._images)

    def names_digest(self) -> str:
        """For `bundlerun.workers.data.same_data`: of files, boxes and labels."""
        found = hashlib.sha256()
        for notes in self._images:
            found.update(os.fsencode(notes.file) + b"\0")
            for array in (notes.boxes, notes.labels, notes.crowds):
                found.update(array.tobytes())
        return found.hexdigest()[:12]

    def check_there(self) -> None:
        """Raises ConfigError where images are missing; lists their folder, opens none."""
        folder = self._paths.images
        there = {
            os.path.relpath(Path(top) / name, folder)
            for top, files, _ in walk(folder)
            for name in files
        }
        missing = [n.file for n in self._images if os.path.normpath(n.file) not in there]
        if missing:
            raise ConfigError(
                f"{len(missing)} of {len(self)} images of {str(self._paths.annotations)!r} are not "
                f"in {str(folder)!r}, such as {missing[0]!r}"
            )

    def __getitem__(self, index: int, /) -> BoxedSample:
        """One image and the things in it.

        Raises:
            UnreadableSample: the file is damaged or cannot be opened.
            ConfigError: the image is of another size than the annotations say.
        """
        notes = self._images[index]
        image: Image.Image = decoded(str(self._paths.images / notes.file), _rgb)
        if image.size != notes.size:
            raise ConfigError(
                f"the image {str(self._paths.images / notes.file)!r} has {_text(image.size)} "
                f"pixels, {str(self._paths.annotations)!r} says {_text(notes.size)}; its boxes do "
                "not fit"
            )
        seen = {"image": F.pil_to_tensor(image), **self._things(notes)}
        target = {"labels": torch.from_numpy(notes.labels[~notes.crowds])}
        is_mirrored = self._is_random and bool(torch.rand(1) < 0.5)
        if is_mirrored:
            seen = {name: F.horizontal_flip(value) for name, value in seen.items()}
        target |= {name: value.as_subclass(Tensor) for name, value in seen.items()}
        pixels = target.pop("image")
        if self._extra == "keypoints":
            target["keypoints"] = self._points(notes, is_mirrored=is_mirrored)
        truth = {"image": torch.tensor([index])}
        if self._is_judged:
            truth |= {
                "boxes": torch.from_numpy(notes.boxes),
                "labels": torch.from_numpy(notes.labels),
                "crowds": torch.from_numpy(notes.crowds),
            }
        return BoxedSample(pixels, target, truth)

    def collate(self, samples: Sequence[BoxedSample]) -> Any:  # noqa: ANN401 - nested tensors
        """Images and targets in lists, as torchvision's models take them; nothing is padded."""
        images, targets, truths = zip(*samples, strict=True)
        return (list(images), list(targets)), list(truths)

    def _things(self, notes: ImageNotes) -> Mapping[str, Tensor]:
        """What is to be mirrored with the image, without crowds."""
        learnt = ~notes.crowds
        canvas = notes.size[::-1]
        found: dict[str, Tensor] = {
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy(notes.boxes[learnt]),
                format=tv_tensors.BoundingBoxFormat.XYXY,
                canvas_size=canvas,
            )
        }
        if self._extra == "masks":
            masks = [self._mask(each, notes) for each in notes.learnt_extras]
            stacked = np.stack(masks) if masks else np.zeros((0, *canvas), np.uint8)
            found["masks"] = tv_tensors.Mask(torch.from_numpy(stacked))
        return found

    def _mask(self, segmentation: object, notes: ImageNotes) -> Any:  # noqa: ANN401 - an array
        try:
            return mask_of(segmentation, notes.size)
        except (TypeError, ValueError) as exc:
            raise ConfigError(
                f"a segmentation of {notes.file!r} in {str(self._paths.annotations)!r} is no mask: "
                f"{exc}"
            ) from exc

    def _points(self, notes: ImageNotes, *, is_mirrored: bool) -> Tensor:
        """Key points: x, y and whether one is seen."""
        extras = notes.learnt_extras
        points = torch.tensor(extras, dtype=torch.float32)
        points = points.reshape(len(extras), len(self._categories.points), 3)
        if is_mirrored:
            points[:, :, 0] = notes.size[0] - points[:, :, 0]
            order = list(range(points.shape[1]))
            for one, other in self._categories.pairs:
                # The left eye is the right one in a mirror.
                order[one], order[other] = other, one
            points = points[:, order]
            points[points[:, :, 2] == 0] = 0  # COCO's convention for those that are not known
        return points


def is_learnt_from(notes: ImageNotes, extra: Extra | None) -> bool:
    """Whether training has a use for an image: there is something in it, and not only a crowd."""
    if extra != "keypoints":
        return bool((~notes.crowds).any())
    return any(any(points[2::3]) for points in notes.learnt_extras)


def _rgb(file: BinaryIO) -> Image.Image:
    with Image.open(file) as image:
        return as_rgb(image)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
