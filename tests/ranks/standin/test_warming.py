"""A standby of `--standby` does its step on the stand-in, which refuses what a GPU would refuse."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.run.warming import Warming
from tests.ranks.harness import run_ranks
from tests.standin.device import Device
from tests.standin.ranks import on_standin


def test_a_standby_starts_its_device_and_does_a_step_there(tmp_path: Path) -> None:
    config = TrainConfig(
        data="synthetic",
        model="shufflenet_v2_x0_5",
        image_size=32,
        synthetic_samples=8,
        batch_size=4,
        microbatch_size=2,
        shape=Shape((1, 1)),
        run_dir=str(tmp_path / "run"),
    )

    def main(env: RankEnv, store: Store, device: Device) -> None:
        # The last stage: its inputs come from the CPU.
        assert Warming(config, 1, 2, "n").run(os.getpid)
        assert sum(device.record.operations.values()) > 100

    run_ranks((1,), on_standin(main), tmp_path, timeout_s=120)
    (line,) = RunPaths(tmp_path / "run").node_events("n").read_text().splitlines()
    assert json.loads(line)["has_stepped"]
