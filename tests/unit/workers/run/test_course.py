"""The loop over steps, with nothing behind it."""

from __future__ import annotations

from unittest.mock import Mock

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.run import course


class Steps(course.Run):
    """Does steps, and keeps and tells nothing."""

    def _after_step(self, *_: object) -> None:
        pass

    def _end_epoch(self) -> bool:
        return True


def test_free_pages_go_back_once_after_the_first_step_of_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    monkeypatch.setattr(course, "trim", lambda: done.append("trimmed"))
    feed, trainer = Mock(steps_per_epoch=3), Mock()
    feed.epoch = lambda epoch, first: (iter(range(first, 3)), None)
    trainer.loss_scale.kept = 1.0, 0

    def step(*_: object) -> Mock:
        done.append("step")
        return Mock(heard_stop=False, moves=False)

    trainer.step = step
    rest = (Mock() for _ in range(7))
    run = Steps(TrainConfig(data="synthetic", epochs=3), feed, trainer, *rest)  # type: ignore[arg-type]
    run.train_from(Progress(step=4, epoch=1, step_in_epoch=1, samples_seen=4))
    assert done == ["step", "trimmed", *["step"] * 4]
