"""What one process without a launcher trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.workers import train
from bundlerun.workers.rank.env import RankEnv


@pytest.mark.parametrize(
    "words",
    [
        "",
        "--recompute all",
        "--chunks 2 --schedule interleaved",
        "--schedule zero-bubble --cut layer3",
        "--shape 1,1|1 --recompute all",
    ],
)
def test_one_process_trains_the_model_unsplit_whatever_was_said_of_stages(
    words: str, tmp_path: Path
) -> None:
    argv = [*words.split(), f"--run-dir={tmp_path}", "--model=resnet18", "synthetic"]
    config = read_train_argv(argv, {}).value
    found = train._checked(config, RankEnv.from_mapping({}))
    assert (found.shape, found.num_chunks) == (Shape((1,)), 1)
    assert (found.cut, found.schedule, found.recompute) == ((), "auto", "none")
