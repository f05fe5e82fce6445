"""Images travel to the device as whole numbers and are normalised there, without any waiting."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.augment.images import ERASED
from bundlerun.workers.data.augment.mixing import Mix
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
    config = TrainConfig(data="synthetic", mixup_alpha=0.2, cutmix_alpha=1.0, random_erase=0.5)
    recipe = load_recipe(config)
    generator = torch.Generator().manual_seed(0)
    shape = (MICROBATCH, 3, 224, 224)
    pixels = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    places = {ERASED: torch.tensor([[5, 6, 70, 80], [0, 0, 0, 0]] * 2)}
    classes = torch.arange(MICROBATCH)
    mixes = [Mix(*alphas)((pixels, places), classes)[0] for alphas in ((0.2, 0), (0, 1.0))]
    drawn = [inputs[1] for inputs in mixes]

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

        # What is erased and mixed is known to the device alone.
        for how in drawn:
            there = {name: value.to("standin") for name, value in how.items()}
            on_device = pixels.to("standin")
            device.record.waits.clear()
            (found,) = model_inputs(recipe, (on_device, there))
            assert not device.record.waits
            (wanted,) = model_inputs(recipe, (pixels, how))
            assert isinstance(found, torch.Tensor)
            assert torch.equal(found.cpu(), wanted)

    run_ranks((1,), on_standin(main), tmp_path)
