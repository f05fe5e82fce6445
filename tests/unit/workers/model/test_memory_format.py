"""The order of images in memory is settled by the option, the model and the devices."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bundlerun.launcher.choices import MemoryFormatChoice
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.model.memory_format import arrange, check_has_images
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.sync.bucket import Bucket

CPU = torch.device("cpu")
LAST, ROW_MAJOR, AS_IT_IS = torch.channels_last, torch.contiguous_format, torch.preserve_format


def convolution() -> nn.Conv2d:
    return nn.Conv2d(3, 4, 3)


@pytest.mark.parametrize(
    ("choice", "has_gpus", "wanted"),
    [
        ("auto", True, LAST),
        ("auto", False, AS_IT_IS),
        ("channels_last", False, LAST),
        ("contiguous", True, ROW_MAJOR),
    ],
)
def test_auto_is_channels_last_on_gpus_only(
    choice: MemoryFormatChoice, has_gpus: bool, wanted: torch.memory_format
) -> None:
    stage = nn.Sequential(convolution(), nn.Linear(4, 2))
    assert arrange(stage, choice, has_gpus=has_gpus) == wanted
    is_last = stage[0].weight.is_contiguous(memory_format=LAST)
    assert is_last == (wanted == LAST)
    assert stage[1].weight.is_contiguous()


def test_contiguous_undoes_what_the_model_has_chosen_and_auto_on_the_cpu_does_not() -> None:
    stage = convolution().to(memory_format=LAST)
    arrange(stage, "auto", has_gpus=False)
    assert not stage.weight.is_contiguous()
    arrange(stage, "contiguous", has_gpus=False)
    assert stage.weight.is_contiguous()


def test_parameters_stay_the_same_objects_with_the_same_numbers() -> None:
    stage = convolution()
    weight, before = stage.weight, stage.weight.detach().clone()
    arrange(stage, "channels_last", has_gpus=False)
    assert stage.weight is weight
    assert torch.equal(weight, before)


def test_a_stage_without_images_leaves_its_inputs_as_they_are() -> None:
    assert arrange(nn.Linear(2, 2), "channels_last", has_gpus=True) == AS_IT_IS


def test_a_model_without_images_refuses_channels_last_in_one_line() -> None:
    with pytest.raises(ConfigError, match="--memory-format channels_last is an order of images"):
        check_has_images("channels_last", nn.Linear(2, 2))
    check_has_images("auto", nn.Linear(2, 2))
    check_has_images("contiguous", nn.Linear(2, 2))
    check_has_images("channels_last", [nn.Linear(2, 2), convolution()])


def test_images_of_the_data_come_in_the_order_and_other_tensors_as_they_are() -> None:
    arithmetic = Arithmetic(CPU, "float32", LAST)
    assert arithmetic.placed(torch.zeros(2, 3, 4, 5)).is_contiguous(memory_format=LAST)
    assert arithmetic.placed(torch.zeros(2, 3)).is_contiguous()
    image = torch.zeros(2, 3, 4, 5).to(memory_format=LAST)
    assert Arithmetic(CPU, "float32").placed(image) is image


def test_gradients_lie_as_their_parameters_and_are_summed_as_they_lie() -> None:
    stage = convolution()
    arrange(stage, "channels_last", has_gpus=False)
    bucket = Bucket(list(stage.parameters()), 0, CPU, None)
    bucket.begin()
    stage(torch.ones(1, 3, 4, 4)).sum().backward()
    bucket.close()
    plain = convolution()
    plain.load_state_dict(stage.state_dict())
    plain(torch.ones(1, 3, 4, 4)).sum().backward()
    for mine, other in zip(stage.parameters(), plain.parameters(), strict=True):
        assert mine.grad is not None
        assert mine.grad.stride() == mine.stride()
        assert mine.grad.untyped_storage().data_ptr() == bucket.flat.untyped_storage().data_ptr()
        assert torch.equal(mine.grad, other.grad)
