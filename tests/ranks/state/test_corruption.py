"""Bits that flip in the state of one replica: who is named, and what the run goes back to."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.corruption.marks import read_marks
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.step import StepResult, StepWork
from bundlerun.workers.train import train
from bundlerun.workers.trainer import Trainer
from bundlerun.workers.verify import slices, verifier
from tests.ranks.harness import outcomes
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.state.killed_runs import SNAPSHOTS, Nodes, Widths, restarts, shaped
from tests.ranks.training.test_parity import assert_close, losses_of, run_state

NUM_STEPS = 18
WITHIN = 4
"""Steps in which all of the state is looked at; what is verified is kept every 6."""
AT = 13
LIMIT_S = 180.0
"""Without an agent, the ranks of another stage end when they have waited for long enough."""
LONG = replace(SNAPSHOTS, max_steps=NUM_STEPS, epochs=4, verify_steps=WITHIN, verify_replicas=False)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(LONG, NUM_STEPS)


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_SLICE_BYTES", 64)  # the model of these tests has 9 KB


def flip(tensor: Tensor, bit: int = 51) -> None:
    """Flips a bit of the last element of a float64 tensor."""
    tensor.detach().view(-1).view(torch.int64)[-1] ^= 1 << bit


def of_parameter(trainer: Trainer) -> Tensor:
    return next(trainer.stage.parameters())


def of_buffer(trainer: Trainer) -> Tensor:
    buffers = dict(trainer.stage.named_buffers())
    return next(b for name, b in buffers.items() if name.endswith("running_mean"))


def of_optimizer(trainer: Trainer) -> Tensor:
    *_, last = (p for p in trainer.stage.parameters())
    found: Tensor = trainer.optimizer.state[last]["momentum_buffer"]
    return found


def of_average(trainer: Trainer) -> Tensor:
    return next(t for t in trainer.average.state().values() if t.is_floating_point())


PLACES: dict[str, Callable[[Trainer], Tensor]] = {
    "parameter": of_parameter,
    "buffer": of_buffer,
    "optimizer state": of_optimizer,
    "average of parameters": of_average,
}


def flipped_run(
    config: TrainConfig,
    nodes: Nodes,
    folder: Path,
    rank: int,
    kind: str,
    bit: int = 51,
    killed: tuple[int, str] = (-1, ""),
) -> dict[int, str]:
    """How the ranks end where a bit of one of them flips before a step.

    Args:
        killed: a rank that dies where all write their marks, and wait for each other: before its
            own or with it.
    """

    def main(env: RankEnv, store: Store) -> None:
        honest, mark = Trainer.step, verifier.write_mark

        def die(*args: Any) -> None:
            if killed[1] == "marked":
                mark(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        if env.rank == killed[0]:
            verifier.write_mark = die

        def tampered(self: Trainer, work: StepWork, *rest: Any) -> StepResult:
            if work.step == AT and env.rank == rank:
                flip(PLACES[kind](self), bit)
            return honest(self, work, *rest)

        Trainer.step = tampered  # type: ignore[method-assign] # in this rank's process only
        train(config, env, store)

    return outcomes(nodes, main, folder, LIMIT_S)


class Faulty(torch.autograd.Function):
    """What a device does that computes wrongly, in the forward or in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str) -> Tensor:
        ctx.kind = kind
        y = x.clone()
        if kind == "activation":
            flip(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        if ctx.kind == "gradient":
            flip(gradient)
        return gradient, None


def wrong_run(
    config: TrainConfig, nodes: Nodes, folder: Path, rank: int, kind: str
) -> dict[int, str]:
    """How the ranks end where one of them computes wrongly from a step on."""

    def main(env: RankEnv, store: Store) -> None:
        honest = Trainer.step

        def tampered(self: Trainer, work: StepWork, *rest: Any) -> StepResult:
            if work.step == AT and env.rank == rank:
                layer = next(m for m in self.stage.modules() if isinstance(m, torch.nn.Conv2d))
                layer.register_forward_hook(lambda *found: Faulty.apply(found[-1], kind))
            return honest(self, work, *rest)

        Trainer.step = tampered  # type: ignore[method-assign] # in this rank's process only
        train(config, env, store)

    return outcomes(nodes, main, folder, LIMIT_S)


@pytest.mark.parametrize(
    ("kind", "shape", "nodes", "rank"),
    [
        ("activation", (1,), (1, 1, 1), 2),
        ("gradient", (1,), (1, 1, 1), 0),
        ("activation", (1, 1), (2, 2, 2), 4),
        ("gradient", (1, 1), (2, 2, 2), 1),
    ],
    ids=str,
)
def test_a_device_that_computes_wrongly_is_named_and_what_it_gave_is_taken_back(
    kind: str, shape: Widths, nodes: Nodes, rank: int, reference: Reference, tmp_path: Path
) -> None:
    like = shaped(shape, tmp_path)
    config = replace(LONG, shape=like.shape, cut=like.cut, run_dir=str(tmp_path / "run"))
    found = wrong_run(config, nodes, tmp_path, rank, kind)
    texts = [text for text in found.values() if "CorruptionError: the replicas" in text]
    assert len(texts) == sum(nodes) // len(shape)
    node = rank // len(shape)
    (mark,) = read_marks(RunPaths(tmp_path / "run"))
    assert (mark.kind, mark.culprits) == (kind, (f"node{node}",)), texts[0]
    # In the last step of each period of four.
    assert (mark.step, mark.verified) == (15, 9)
    state = run_state(config, nodes, tmp_path)
    assert restarts(tmp_path) == [(6, "snapshot")]
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)


def test_unlike_hardware_is_not_compared(tmp_path: Path) -> None:
    config = replace(LONG, shape=shaped((1,), tmp_path).shape, run_dir=str(tmp_path / "run"))

    def main(env: RankEnv, store: Store) -> None:
        torch.set_num_threads(1 + env.rank)
        honest = Trainer.step

        def tampered(self: Trainer, work: StepWork, *rest: Any) -> StepResult:
            if work.step == AT and env.rank == 1:
                layer = next(m for m in self.stage.modules() if isinstance(m, torch.nn.Conv2d))
                layer.register_forward_hook(lambda *found: Faulty.apply(found[-1], "gradient"))
            return honest(self, work, *rest)

        Trainer.step = tampered  # type: ignore[method-assign] # in this rank's process only
        train(replace(config, threads=1 + env.rank), env, store)

    assert outcomes((1, 1), main, tmp_path, LIMIT_S) == {}


CASES: list[tuple[str, Widths, Nodes, int]] = [
    ("parameter", (1,), (1, 1, 1), 1),
    ("buffer", (1,), (2, 1), 0),
    ("optimizer state", (1, 1), (2, 2, 2), 3),
    ("average of parameters", (1,), (1, 1, 1), 2),
    ("parameter", (1, 1), (2, 4), 5),
]


@pytest.mark.parametrize(("kind", "shape", "nodes", "rank"), CASES, ids=str)
def test_the_culprit_is_named_and_the_run_goes_back_to_what_was_verified(
    kind: str, shape: Widths, nodes: Nodes, rank: int, reference: Reference, tmp_path: Path
) -> None:
    config = replace(
        LONG, shape=shaped(shape, tmp_path).shape, cut=shaped(shape, tmp_path).cut,
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    found = flipped_run(config, nodes, tmp_path, rank, kind)
    texts = [text for text in found.values() if "CorruptionError: the replicas" in text]
    stage = rank % len(shape)
    assert len(texts) == sum(nodes) // len(shape), "all replicas of the stage say so"
    where = [n for n, count in enumerate(nodes) for _ in range(count)][rank]
    for text in texts:
        assert f"the replicas of stage {stage} differ before step" in text
        assert f": rank {rank} on node node{where} has other bits than the other" in text

    paths = RunPaths(tmp_path / "run")
    (mark,) = read_marks(paths)
    assert AT <= mark.step < AT + WITHIN
    assert mark.verified == mark.step - WITHIN - 2
    # What is wrong in one goes into the other with the next step.
    spread = {"parameter", "optimizer state", "average of parameters"}
    assert mark.kind == kind if kind == "buffer" else mark.kind in spread
    assert mark.culprits == (f"node{where}",)
    state = run_state(config, nodes, tmp_path)
    (restart,) = restarts(tmp_path)
    # There are checkpoints of steps 5 and 10, the ends of epochs.
    assert restart == ((10, "checkpoint") if mark.verified >= 10 else (6, "snapshot"))
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)
    # What may be corrupted is there for who wants to look, and is no checkpoint.
    assert (paths.checkpoints / "suspect-step-000000010").is_dir() == (mark.verified < 10)
    assert survey(paths).found[0].step == NUM_STEPS


@pytest.mark.parametrize("where", ["not marked", "marked"])
@pytest.mark.parametrize("who", [0, 1])
def test_a_rank_that_is_killed_where_all_write_their_marks_loses_no_mark(
    who: int, where: str, reference: Reference, tmp_path: Path
) -> None:
    config = replace(LONG, shape=shaped((1,), tmp_path).shape, run_dir=str(tmp_path / "run"))
    found = flipped_run(config, (1, 1, 1), tmp_path, 1, "parameter", killed=(who, where))
    texts = {rank for rank, text in found.items() if "CorruptionError: the replicas" in text}
    assert texts == {0, 1, 2} - {who}, "whoever is left says so, and does not wait"
    (mark,) = read_marks(RunPaths(tmp_path / "run"))
    assert mark.culprits == ("node1",)
    state = run_state(config, (1, 1, 1), tmp_path)
    ((step, _),) = restarts(tmp_path)
    assert step <= mark.verified
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)


def test_without_memory_it_goes_back_to_a_checkpoint_that_was_kept_for_that(
    reference: Reference, tmp_path: Path
) -> None:
    config = replace(
        LONG, shape=shaped((1,), tmp_path).shape, run_dir=str(tmp_path / "run"), snapshot="off",
        checkpoint_steps=1, keep=2,
    )  # fmt: skip
    found = flipped_run(config, (1, 1), tmp_path, 1, "parameter")
    # Of two nobody can say which is wrong.
    assert all(
        "which of the 2 is wrong, only three or more could tell" in t for t in found.values()
    )
    (mark,) = read_marks(RunPaths(tmp_path / "run"))
    assert mark.culprits == ()
    state = run_state(config, (1, 1), tmp_path)
    ((step, source),) = restarts(tmp_path)
    assert source == "checkpoint"
    assert mark.verified - WITHIN <= step <= mark.verified
    assert_close(state, reference.state, 1e-10)


def test_a_flip_that_leaves_no_loss_is_told_as_what_it_is(tmp_path: Path) -> None:
    config = replace(
        LONG, shape=shaped((1,), tmp_path).shape, run_dir=str(tmp_path / "run"), verify_steps=400
    )
    found = flipped_run(config, (1, 1, 1), tmp_path, 1, "parameter", bit=62)
    for text in found.values():
        assert "CorruptionError: the replicas of stage 0 differ in step 13, which has no " in text
        assert "rank 1 on node node1 has other bits than the other 2" in text


def test_a_run_that_is_not_to_look_finds_nothing(tmp_path: Path) -> None:
    config = replace(
        LONG, shape=shaped((1,), tmp_path).shape, run_dir=str(tmp_path / "run"), verify_steps=-1
    )
    assert flipped_run(config, (1, 1, 1), tmp_path, 1, "optimizer state") == {}
