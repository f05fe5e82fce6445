"""Small detection models of torchvision's own classes, for images of about 32 pixels."""

from __future__ import annotations

from typing import Any

import torchvision
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.models.detection.rpn import AnchorGenerator

_SIZES: dict[str, Any] = {"min_size": 32, "max_size": 64}


def _backbone() -> nn.Sequential:
    made = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(),
    )  # fmt: skip
    made.out_channels = 16  # type: ignore[assignment]
    return made


def _anchors() -> AnchorGenerator:
    return AnchorGenerator(((4, 8, 16),), ((0.5, 1.0, 2.0),))


def build(num_classes: int) -> nn.Module:
    """Its loss is a mean over images, each by its own boxes."""
    return RetinaNet(
        _backbone(), num_classes, anchor_generator=_anchors(), score_thresh=0.0, **_SIZES
    )


def of_two_passes(num_classes: int) -> nn.Module:
    """It draws the proposals that it learns from."""
    return FasterRCNN(
        _backbone(),
        rpn_anchor_generator=_anchors(),
        box_roi_pool=torchvision.ops.MultiScaleRoIAlign(["0"], 3, 1),
        box_head=nn.Sequential(nn.Flatten(), nn.Linear(16 * 9, 16), nn.ReLU()),
        box_predictor=FastRCNNPredictor(16, num_classes),
        rpn_post_nms_top_n_train=30,
        rpn_post_nms_top_n_test=15,
        rpn_batch_size_per_image=16,
        box_batch_size_per_image=16,
        **_SIZES,
    )
