"""What a round that ranks go on in has to begin with."""

from __future__ import annotations

import pytest
from torch import nn

from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.recipe import DataInfo
from bundlerun.workers.run.hand_over import Kept, Way
from bundlerun.workers.run.keeper import Resumed
from bundlerun.workers.snapshot.piece import SnapshotId


def resumed_at(step: int, *, is_snapshot: bool = True) -> Resumed:
    return Resumed(
        progress=Progress(step=step, epoch=0, step_in_epoch=step, samples_seen=step),
        snapshot=SnapshotId(step, "token") if is_snapshot else None,
    )


def way_after(step: int) -> Way:
    info = DataInfo(num_train=1, num_val=0, num_outputs=1)
    kept = Kept(
        recipe=None,  # type: ignore[arg-type]
        info=info,
        data=None,
        stage=nn.Identity(),
        found={},
        cuts=(),
        step=step,
    )
    return Way(kept=kept, number=2)


def test_a_rank_that_went_on_continues_from_the_step_that_it_left() -> None:
    way_after(7).check(resumed_at(7))


@pytest.mark.parametrize(
    ("resumed", "words"),
    [
        (None, "no state in memory"),
        (resumed_at(7, is_snapshot=False), "no state in memory"),
        (resumed_at(6), "step 6 was found in memory, after step 7"),
    ],
)
def test_another_state_ends_the_start(resumed: Resumed | None, words: str) -> None:
    with pytest.raises(RuntimeError, match=words):
        way_after(7).check(resumed)


def test_a_rank_that_begins_takes_what_there_is() -> None:
    Way().check(None)
    Way().check(resumed_at(3, is_snapshot=False))
