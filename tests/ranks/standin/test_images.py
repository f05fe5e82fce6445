"""Images travel to the device as whole numbers and are normalised there, without any waiting."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.device import host_memory
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.recipe import load_recipe, model_inputs
from tests.ranks.harness import run_ranks
from tests.standin.device import Device
from tests.standin.ranks import on_standin

MICROBATCH = 4
OPERATIONS = 5
"""A copy; to float32, scaled, less the mean, by the deviation."""


def test_images_are_normalised_on_the_device_in_few_operations_and_without_waiting(
    tmp_path: Path,
) -> None:
    recipe = load_recipe(TrainConfig(data="synthetic"))
    generator = torch.Generator().manual_seed(0)
    shape = (MICROBATCH, 3, 224, 224)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)

    def main(env: RankEnv, store: Store, device: Device) -> None:
        def placed() -> torch.Tensor:
            pinned = host_memory.pinned(shape, torch.uint8).copy_(pixels)
            assert pinned.nbytes == MICROBATCH * 150_528
            on_device = pinned.to("standin", non_blocking=True)
            (found,) = model_inputs(recipe, (on_device,))
            assert isinstance(found, torch.Tensor)
            return found

        placed()  # brings mean and deviation there, once
        device.record.waits.clear()
        device.record.operations.clear()
        found = placed()
        assert not device.record.waits
        assert sum(device.record.operations.values()) <= OPERATIONS
        (wanted,) = model_inputs(recipe, (pixels,))
        assert found.dtype is torch.float32
        assert torch.equal(found.cpu(), wanted)

    run_ranks((1,), on_standin(main), tmp_path)
