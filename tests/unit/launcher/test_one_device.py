from __future__ import annotations

import pytest

from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import Cpus, Hardware
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.one_device import for_one_device
from bundlerun.launcher.train_argv import read_train_argv


def shape(num_gpus: int, words: str = "", **launch: object) -> tuple[Shape, str]:
    train = read_train_argv([*words.split(), "synthetic"], {})
    hardware = Hardware(num_gpus=num_gpus, cpus=Cpus(numa_nodes=(((0,),),)))
    found = for_one_device(train, LaunchConfig(**launch), hardware)  # type: ignore[arg-type]
    return found.value.shape, found.sources["shape"]


def test_one_gpu_trains_the_model_uncut() -> None:
    assert shape(1) == (Shape((1,)), "default for one device")
    assert shape(0, slots=1)[0] == Shape((1,))
    assert shape(8, nproc_per_node="1")[0] == Shape((1,))


@pytest.mark.parametrize(
    ("num_gpus", "words", "launch"),
    [
        (2, "", {}),
        (0, "", {}),  # CPU slots are as many as a bundle needs
        (1, "", {"nnodes": "2", "rdzv_endpoint": "a:1"}),  # a bundle spans two nodes
        (1, "", {"nnodes": "1:4", "rdzv_endpoint": "a:1"}),
        (1, "", {"slots": 2}),
        (1, "", {"nproc_per_node": "2"}),  # two ranks that share it
        (1, "", {"devices": "cpu"}),
        (1, "--cut layer3", {}),  # the user says stages
    ],
)
def test_everything_else_has_the_default_shape(
    num_gpus: int, words: str, launch: dict[str, object]
) -> None:
    assert shape(num_gpus, words, **launch) == (Shape((1, 1)), "default")


def test_all_stages_that_are_one_have_nothing_to_compute_again() -> None:
    train = read_train_argv(["--recompute", "all", "synthetic"], {})
    hardware = Hardware(num_gpus=1, cpus=Cpus(numa_nodes=(((0,),),)))
    found = for_one_device(train, LaunchConfig(), hardware)
    assert (str(found.value.shape), found.value.recompute) == ("1", "none")
    assert found.sources["recompute"] == "default for one device"


def test_a_shape_that_is_said_counts() -> None:
    assert shape(1, "--shape 1,1") == (Shape((1, 1)), "option")
