"""What a run on the stand-in says of its time and its memory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import Store

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.snapshots import Snapshots
from bundlerun.workers.train import train
from tests.ranks.harness import run_ranks
from tests.ranks.standin.test_training import SHORT
from tests.standin.device import Device
from tests.standin.ranks import on_standin


def test_phases_are_timed_on_the_device_and_told_with_its_memory(tmp_path: Path) -> None:
    config = replace(SHORT, transport="nccl", run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store, device: Device) -> None:
        train(config, env, store)

    run_ranks((2,), on_standin(main), tmp_path, timeout_s=120)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if row["kind"] == "epoch")
    phases = row["phases"]
    assert all(phases[name] > 0.0 for name in ("forward", "backward", "optimizer", "launch"))
    assert row["samples_per_s_per_gpu"] == pytest.approx(row["samples_per_s"] / 2)
    assert set(row["gpu_peak_bytes"]) == {"stage0", "stage1"}
    assert all(peak > 0 for peak in row["gpu_peak_bytes"].values())


def test_all_ranks_leave_the_same_snapshots_out_to_see_what_one_costs(tmp_path: Path) -> None:
    config = replace(
        SHORT,
        transport="nccl",
        snapshot="on",
        epochs=6,
        max_steps=17,
        run_dir=str(tmp_path / "run"),
    )

    def main(env: RankEnv, store: Store, device: Device) -> None:
        begin, kept = Snapshots._begin, []

        def noted(self: Snapshots, progress: Progress) -> None:
            kept.append(progress.step)
            begin(self, progress)

        Snapshots._begin = noted  # in this process only
        train(config, env, store)
        (tmp_path / f"{env.rank}.json").write_text(json.dumps(kept))

    run_ranks((2, 2), on_standin(main), tmp_path, timeout_s=200)
    kept = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    # After steps 5 to 8 and 13 to 16 there is none, in the trial before the review.
    assert [step for step in kept[0] if step <= 16] == [1, 2, 3, 4, 9, 10, 11, 12]
    assert all(steps == kept[0] for steps in kept)
