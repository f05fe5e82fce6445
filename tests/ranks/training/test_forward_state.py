"""State that a forward writes, through real ranks: no replica differs, whatever the topology."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import Store

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.checkpoints import read_tensors, survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.step import StepResult, StepWork
from bundlerun.workers.train import train
from tests.ranks.harness import outcomes, run_ranks
from tests.ranks.training.test_parity import CONFIG, assert_close, losses_of, run_state

MODEL = f"{Path(__file__).parents[1] / 'stateful_model.py'}:build"
STATEFUL = replace(CONFIG, model=MODEL, image_size=4, clip_norm=0.0)


def test_what_a_forward_writes_does_not_depend_on_the_replicas(tmp_path: Path) -> None:
    alone = run_state(replace(STATEFUL, shape=Shape((1,))), (1,), tmp_path / "1")
    assert alone["codes.count"] == 5  # once a step
    assert alone["codes.hidden"].abs().max() > 0
    for shape, nodes in (((1,), (2, 1)), ((1, 1), (2, 2)), ((2, 1), (3,))):
        folder = tmp_path / f"{shape}"
        config = replace(STATEFUL, shape=Shape(shape), cut=("second",) if len(shape) > 1 else ())
        state = run_state(config, nodes, folder)  # each step verifies that replicas are bit-equal
        assert_close(state, alone, 1e-10)
        assert losses_of(folder) == pytest.approx(losses_of(tmp_path / "1"), rel=1e-10)


@pytest.mark.parametrize(("parts", "wanted"), [(9, 1), (1, 0)])
def test_a_validation_that_a_stop_breaks_off_is_saved_as_if_it_had_not_begun(
    parts: int, wanted: int, tmp_path: Path
) -> None:
    model = MODEL.replace(":build", ":build_counting")
    config = replace(STATEFUL, model=model, shape=Shape((1,)), max_steps=0, epochs=1, validate=True)
    # Two parts of a validation, of 3 batches each.
    config = replace(config, batch_size=8, run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store) -> None:
        from bundlerun.workers.trainer import Trainer

        honest = Trainer.evaluate

        def stopped(self: Trainer, *args: Any, **_: Any) -> Any:
            asked = count()
            return honest(self, *args, is_told=lambda: next(asked) >= parts)

        Trainer.evaluate = stopped  # type: ignore[method-assign] # in this rank's process only
        train(config, env, store)

    run_ranks((2,), main, tmp_path)
    newest = survey(RunPaths(tmp_path / "run")).found[0]
    assert newest.step == 14
    assert read_tensors(newest, ["model.calls"])["model.calls"] == wanted


def test_replicas_that_differ_end_the_run_with_the_name(tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        shape=Shape((1,)),
        verify_replicas=False,
        run_dir=str(tmp_path / "run"),
        timeout_s=10,
    )

    def main(env: RankEnv, store: Store) -> None:
        from bundlerun.workers.trainer import Trainer

        honest = Trainer.step

        def tampered(self: Trainer, work: StepWork, *rest: Any) -> StepResult:
            if work.step == 1 and env.rank == 1:
                self.stage.norm2.running_var.data[3] += 1e-7
            return honest(self, work, *rest)

        Trainer.step = tampered  # type: ignore[method-assign] # in this rank's process only
        train(config, env, store)

    for text in outcomes((3,), main, tmp_path, 60).values():
        assert "CorruptionError: the replicas of stage 0 differ before step 1 in " in text
        assert "'norm2.running_var' (buffer): rank 1 on node" in text
