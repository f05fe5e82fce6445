"""Snapshots of state that is on a GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed import Store

from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.piece import Layout
from bundlerun.workers.snapshot.slot import Slot, read_piece
from tests.ranks.harness import run_ranks
from tests.standin.device import Device
from tests.standin.ranks import on_standin
from tests.unit.workers.snapshot.test_device_copy import LABEL


def test_a_rank_without_a_share_of_a_small_stage_writes_an_empty_piece(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store, device: Device) -> None:
        gpu = torch.device("standin", 0)
        slot = Slot(tmp_path / "piece", Layout.of({}))
        DeviceCopy.after_now(gpu).write(slot, LABEL, {})
        found = read_piece(tmp_path / "piece")
        assert found is not None
        assert not found.layout.specs

    run_ranks((1,), on_standin(main), tmp_path)
