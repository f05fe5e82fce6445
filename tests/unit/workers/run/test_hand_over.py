"""Where a rank goes on in another round."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn
from torch.optim import SGD

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import Progress, Survey
from bundlerun.workers.optim.average import Average
from bundlerun.workers.optim.loss_scale import LossScale
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.recipe import DataInfo
from bundlerun.workers.run.hand_over import Kept
from bundlerun.workers.run.keeper import Found
from bundlerun.workers.snapshot.piece import SnapshotId
from bundlerun.workers.trainer import Held


def kept_at(progress: Progress | None) -> Kept:
    stage, nobody, config = nn.Linear(1, 1), Any, TrainConfig(data="x")
    optimizer = SGD(stage.parameters(), lr=0.1)
    return Kept(
        recipe=nobody,  # type: ignore[arg-type]
        info=DataInfo(num_train=1, num_val=0, num_outputs=1),
        data=None,
        feed=nobody,  # type: ignore[arg-type]
        held=Held(
            stage=stage,
            optimizer=optimizer,
            groups=ParamGroups(optimizer),
            loss_scale=LossScale.of(config),
            average=Average(config, stage),
        ),
        found={},
        cuts=(),
        restore=nobody,  # type: ignore[arg-type]
        snapshots=nobody,  # type: ignore[arg-type]
        reporter=None,
        start=Found(on_disk=Survey([], {}), in_memory=3),
        token="first",
        progress=progress,
    )


def test_a_rank_that_went_on_does_so_from_the_snapshot_of_the_step_that_it_left() -> None:
    progress = Progress(step=7, epoch=0, step_in_epoch=7, samples_seen=7)
    resumed = kept_at(progress).resumed()
    assert resumed.progress == progress
    # Of the round before, whose ranks have taken it.
    assert resumed.snapshot == SnapshotId(7, "first")


def test_a_rank_that_has_not_left_goes_on_nowhere() -> None:
    with pytest.raises(AssertionError):
        kept_at(None).resumed()
