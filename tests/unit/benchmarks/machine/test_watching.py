"""The interval that the cost of watching is said with, and the model that it is measured on."""

from __future__ import annotations

import random
from statistics import median

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from benchmarks.machine.watching import median_interval
from benchmarks.workload.thin_resnet import CHANNELS, build


@pytest.mark.parametrize(
    ("count", "left_out"), [(1, 0), (5, 0), (6, 0), (8, 0), (9, 1), (12, 2), (25, 7)]
)
def test_the_ends_leave_out_what_tables_of_the_sign_test_say(count: int, left_out: int) -> None:
    values = random.Random(count).sample(range(1000), count)
    ordered = sorted(map(float, values))
    expected = [ordered[left_out], median(ordered), ordered[count - 1 - left_out]]
    assert median_interval(values) == expected


def test_the_thin_model_has_the_layers_and_names_of_the_whole_one() -> None:
    thin, whole = build(10), resnet18(num_classes=10)
    assert [n for n, _ in thin.named_parameters()] == [n for n, _ in whole.named_parameters()]
    assert [type(m) for m in thin.modules()] == [type(m) for m in whole.modules()]
    assert thin(torch.zeros(2, 3, 40, 40)).shape == (2, 10)
    widths = {m.out_channels for m in thin.modules() if isinstance(m, nn.Conv2d)}
    assert widths == {CHANNELS}
