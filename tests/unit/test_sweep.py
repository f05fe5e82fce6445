"""Models of torchvision that differ in kind, whole and cut; all of them: make sweep."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.sweep_models import check_model, plain_step, torchvision_model, verdict


@pytest.mark.parametrize(
    "name",
    ["mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "regnet_y_400mf"],
)
def test_a_step_of_a_torchvision_model_is_plain_torchs(name: str) -> None:
    whole, cut, how = check_model(*torchvision_model(name))
    assert (whole, cut) == ("equal", "equal")
    assert how.startswith("cut by graph at ")


def test_stages_that_are_not_the_model_are_seen() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))
    image = torch.randn(2, 3, 6, 6)
    stages = [nn.Sequential(model[0]), nn.Sequential(model[2], model[3])]
    assert verdict(model, stages, image, plain_step(model, image)).startswith(
        "refused: in training"
    )
