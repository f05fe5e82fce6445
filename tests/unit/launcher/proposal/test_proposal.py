from __future__ import annotations

import tomllib
from typing import Any

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.models.name import RECIPES
from bundlerun.launcher.options.declared import check_keys, resolve
from bundlerun.launcher.proposal.data_look import DataLook
from bundlerun.launcher.proposal.machine_look import MachineLook
from bundlerun.launcher.proposal.proposal import image_side, propose
from bundlerun.launcher.proposal.toml_file import toml_text

GPUS = MachineLook(kind="gpu", num_devices=8, num_cores=64, file_system="nfs4", is_shared=True)
CPU = MachineLook(kind="cpu", num_devices=2, num_cores=2)


def read(machine: MachineLook, data: DataLook, *, is_all: bool = False) -> dict[str, Any]:
    text = toml_text(propose(machine, data), name="run.toml")
    return tomllib.loads(text.replace("\n#. ", "\n") if is_all else text)


@pytest.mark.parametrize("machine", [GPUS, CPU])
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("num_train", [0, 3, 60_000, 1_281_167])
def test_every_key_is_an_option_with_a_value_that_it_takes(
    machine: MachineLook, recipe: str, num_train: int
) -> None:
    look = DataLook(data='a "b"\\c\x7f', recipe=recipe, num_train=num_train, has_val=False)
    for is_all in (False, True):
        values = read(machine, look, is_all=is_all)
        assert values.pop("data") == look.data
        check_keys(values, (TrainConfig, LaunchConfig), "run.toml")
        values = values | ({"model": "hf:x"} if recipe == "sequence-classification" else {})
        train = resolve(TrainConfig, {}, environ={}, toml=values).value
        resolve(LaunchConfig, {}, environ={}, toml=values)
        assert train.batch_size >= 1
        assert not train.validate


def test_a_batch_fits_devices_and_data() -> None:
    many = DataLook(data="d", recipe="image-classification", num_train=1_281_167, side=375)
    assert read(GPUS, many)["batch-size"] == 1024
    assert read(GPUS, many)["lr"] == 0.4
    assert read(GPUS, many)["model"] == "resnet50"
    few = DataLook(data="d", recipe="image-classification", num_train=1000, side=375)
    assert read(GPUS, few)["batch-size"] * 20 <= 1000
    assert read(GPUS, few)["model"] == "resnet18"


def test_images_that_cannot_be_read_are_skipped_and_told() -> None:
    look = DataLook(
        data="d", recipe="image-classification", num_opened=9, num_unreadable=2, unreadable="x/y"
    )
    text = toml_text(propose(CPU, look), name="run.toml")
    assert tomllib.loads(text)["skip-unreadable"] is True
    assert "2 of 9 images cannot be read, such as 'x/y'" in text


@pytest.mark.parametrize(
    ("side", "size"), [(0, 224), (500, 224), (224, 224), (200, 192), (32, 32), (8, 32)]
)
def test_small_images_are_trained_small(side: int, size: int) -> None:
    assert image_side(side) == size
