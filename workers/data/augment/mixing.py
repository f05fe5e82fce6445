"""Mixup and cutmix: each image of a micro-batch gets something of the one before it.

Which shares, and which part, is drawn where the images are read; mixed is where the model computes,
so that pixels and classes travel as they are.

    read      images (uint8)           {"mix_box": (4,), "mix_share": ()}
              classes, the others'     share of the image itself
    device    normalised, in the box:  image * share + the one before * (1 - share)
    loss      soft targets:            likewise

Source: mixup, Zhang et al. 2017; cutmix, Yun et al. 2019.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torchvision.transforms import v2

BOX, SHARE = "mix_box", "mix_share"
_CLASS, _OTHER, _OF_CLASS = "class", "other", "share"


class Mix:
    """Draws how a micro-batch is mixed; see `bundlerun.workers.recipe.DataSets`.

    Args:
        mixup_alpha: of mixup's Beta distribution; 0: there is none.
        cutmix_alpha: of cutmix's, likewise. With both, each micro-batch has one of them.
    """

    def __init__(self, mixup_alpha: float, cutmix_alpha: float) -> None:
        both = (v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha)
        # The number of classes is known where targets are made soft.
        self._ways = [way(alpha=alpha, num_classes=1) for way, alpha in both if alpha]

    def __call__(
        self,
        inputs: tuple[Any, ...],
        target: Any,  # noqa: ANN401 (a sample's)
    ) -> tuple[tuple[Any, ...], Any]:
        """Draws as torchvision's `RandomChoice([MixUp, CutMix])` does.

        Args:
            inputs: the images, and what else is known of them.
            target: the class of each, (batch,).
        """
        images: Tensor = inputs[0]
        more: Mapping[str, Tensor] = inputs[1] if len(inputs) > 1 else {}
        drawn = _drawn(self._ways, images)
        how = {
            BOX: torch.tensor(drawn.box),
            SHARE: torch.tensor(drawn.share, dtype=torch.float64),
        }
        soft = {
            _CLASS: target,
            _OTHER: target.roll(1, 0),
            _OF_CLASS: torch.full(target.shape, drawn.share_of_class, dtype=torch.float64),
        }
        return (images, {**more, **how}), soft


class _Drawn(NamedTuple):
    box: tuple[int, int, int, int]
    """Left, top, right and bottom of where it is mixed."""
    share: float
    """Of the image itself, in there."""
    share_of_class: float


def _drawn(ways: list[Any], images: Tensor) -> _Drawn:
    number = int(torch.multinomial(torch.full((len(ways),), 1 / len(ways)), 1))
    found = ways[number].make_params([images])
    if "lam" in found:
        height, width = images.shape[-2:]
        return _Drawn((0, 0, width, height), found["lam"], found["lam"])
    return _Drawn(found["box"], 0.0, found["lam_adjusted"])


def mixed(images: Tensor, box: Tensor, share: Tensor) -> Tensor:
    """Images (batch, channels, height, width), mixed in a box with the one before, the last first.

    Args:
        images: real numbers.
        box: (4,), left, top, right and bottom.
        share: scalar, of the image itself in there.
    """
    left, top, right, bottom = box.unbind()
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    own, others = (each.to(images.dtype) for each in (share, 1.0 - share))
    # In this order, so that each number is torchvision's.
    blend = images.roll(1, 0).mul_(others).add_(images.mul(own))
    return torch.where(inside, blend, images)


def is_mixed(target: object) -> TypeGuard[dict[str, Tensor]]:
    """Whether a target is one that `Mix` gives."""
    return isinstance(target, Mapping)


def soft_target(target: Mapping[str, Tensor], num_classes: int, dtype: torch.dtype) -> Tensor:
    """How much of each class an image has, (batch, classes), of what `Mix` gives."""
    share = target[_OF_CLASS][:, None]
    own, others = (each.to(dtype) for each in (share, 1.0 - share))
    classes, other = (one_hot(target[name], num_classes).to(dtype) for name in (_CLASS, _OTHER))
    return other.mul_(others).add_(classes.mul_(own))
