"""Every schedule trains like the unsplit model, whatever the shape, the nodes and the count."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import Store

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.launcher.layout.topology import Place, Topology
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.models import make_stages
from bundlerun.splits.stage import Forward, chunk_forwards
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.step import StepShare, StepWork
from tests.ranks.harness import run_ranks
from tests.ranks.reference import Reference, train_unsplit
from tests.ranks.training.test_oracle import make_bundle
from tests.ranks.training.test_parity import CONFIG, NUM_STEPS, assert_close, losses_of, run_state

LAYOUTS = [((2, 1), (3, 3)), ((3, 2), (5,)), ((1, 1, 1), (3,))]
KINDS = [("gpipe", 1), ("eager-1f1b", 1), ("zero-bubble", 1), ("interleaved", 2)]
"""Besides 1f1b, with which all tests of layouts train; two stages of them are bit-equal below."""
# The last step has two micro-batches: a third replica of a stage has nothing to do in it.
SHORT = replace(CONFIG, synthetic_samples=4 * 24 + 7)
NO_CLIP = replace(CONFIG, precision="float32", clip_norm=0.0, max_steps=3)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return train_unsplit(SHORT, NUM_STEPS)


def scheduled(config: TrainConfig, shape: tuple[int, ...], kind: tuple[str, int]) -> TrainConfig:
    schedule, chunks = kind
    cut = (str(len(shape) * chunks),) if len(shape) > 1 else ()
    config = replace(config, shape=Shape(shape), schedule=schedule, chunks=chunks, cut=cut)
    # So small a model cannot be cut evenly: each rank would try replay for longer than it trains.
    return replace(config, cutter="graph")


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(("shape", "nodes"), LAYOUTS, ids=str)
def test_every_schedule_trains_like_the_unsplit_model(
    shape: tuple[int, ...],
    nodes: tuple[int, ...],
    kind: tuple[str, int],
    reference: Reference,
    tmp_path: Path,
) -> None:
    config = scheduled(SHORT, shape, kind)
    if shape == (3, 2):  # stages that replay, as each rank finds that they are more even
        config = replace(config, cutter="auto")
    state = run_state(config, nodes, tmp_path)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)


def test_fewer_microbatches_than_ranks_in_every_step_train_like_the_unsplit_model(
    tmp_path: Path,
) -> None:
    config = scheduled(replace(CONFIG, microbatch_size=12), (3, 2), ("interleaved", 2))
    state = run_state(config, (5,), tmp_path)
    assert_close(state, train_unsplit(config, NUM_STEPS).state, 1e-10)


def test_one_bundle_of_two_stages_is_bit_equal_to_one_process_in_every_schedule(
    tmp_path: Path,
) -> None:
    def state_of(shape: tuple[int, ...], kind: tuple[str, int]) -> dict[str, Tensor]:
        folder = tmp_path / f"{len(shape)}-{kind[0]}"
        return run_state(scheduled(NO_CLIP, shape, kind), (len(shape),), folder)

    one = state_of((1,), ("1f1b", 1))
    for kind in KINDS:
        two = state_of((1, 1), kind)
        assert all(torch.equal(two[name], value) for name, value in one.items()), kind


def test_a_run_goes_on_and_validates_under_another_schedule(tmp_path: Path) -> None:
    config = replace(CONFIG, optimizer="adamw", lr=0.01, validate=True)

    def validation(folder: Path) -> object:
        return json.loads(RunPaths(folder / "run").summary.read_text())["validation"]

    wanted = run_state(replace(config, shape=Shape((1,))), (1,), tmp_path / "one")
    first = scheduled(replace(config, max_steps=3), (1, 1, 1), ("interleaved", 2))
    run_state(first, (3,), tmp_path / "two")
    then = scheduled(config, (2, 1), ("zero-bubble", 1))
    found = run_state(then, (3,), tmp_path / "two")
    assert_close(found, wanted, 1e-10)
    assert validation(tmp_path / "two") == pytest.approx(validation(tmp_path / "one"))


class Held(torch.autograd.Function):
    """Passes a tensor through; its context lives as long as autograd needs what is saved here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, contexts: list[weakref.ref[Any]]) -> Tensor:
        ctx.save_for_backward(x)
        contexts.append(weakref.ref(ctx))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def toy_stages(num_stages: int, chunks: int) -> list[nn.Module]:
    return make_stages(
        [nn.Linear(4, 4) for _ in range(num_stages * chunks)],
        cut=[],
        num_stages=num_stages,
        chunks_per_stage=chunks,
    )


def toy_step(
    bundle: Bundle, place: Place, width: int, num_microbatches: int, seen: list[object]
) -> None:
    """One step that notes the calls back."""
    batches = iter(
        Batch((torch.randn(2, 4),), torch.tensor([0, 1]), 0)
        for _ in range(place.replica, num_microbatches, width)
    )
    sizes = [2] * num_microbatches
    work = StepWork(seed=0, step=0, first=0, sizes=sizes, num_samples=2 * num_microbatches)
    bundle.train(
        work,
        batches,
        StepShare(),
        before_last_backward=seen.append,
        on_forwards_done=lambda: seen.append("forwards done"),
    )


def stepped(
    env: RankEnv, store: Store, kind: tuple[str, int], around: Callable[[Forward], Forward]
) -> tuple[Bundle, Place]:
    """A bundle of three stages after a step, its forwards wrapped; without a garbage collector."""
    schedule, chunks = kind
    topology = Topology(Shape((1, 1, 1)), (3,), chunks)
    place = topology.places[env.rank]
    stage = toy_stages(3, chunks)[place.stage]
    forwards = [around(forward) for forward in chunk_forwards(stage, chunks)]
    bundle = make_bundle(env, store, topology, stage, schedule, forwards)
    gc.disable()
    toy_step(bundle, place, 1, 8, [])
    return bundle, place


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_activations_are_let_go_with_the_last_pass(kind: tuple[str, int], tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        contexts: list[weakref.ref[Any]] = []
        most = 0

        def counted(forward: Forward) -> Forward:
            def run(x: Tensor) -> object:
                nonlocal most
                is_input = x.requires_grad
                result = forward(Held.apply(x, contexts) if is_input else x)
                if not is_input:
                    result = (Held.apply(result[0], contexts),)
                most = max(most, sum(context() is not None for context in contexts))
                return result

            return run

        bundle, place = stepped(env, store, kind, counted)
        assert not any(context() for context in contexts)
        assert most == max_in_flight(bundle.pipeline.order(place.stage, 0, 8))

    run_ranks((3,), main, tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_outputs_are_let_go_as_soon_as_they_are_sent(kind: tuple[str, int], tmp_path: Path) -> None:
    _, chunks = kind

    def main(env: RankEnv, store: Store) -> None:
        outputs: list[weakref.ref[Tensor]] = []

        def watched(forward: Forward) -> Forward:
            def run(x: Tensor) -> object:
                assert not any(output() is not None for output in outputs)
                result = forward(x)
                if isinstance(result, tuple):  # of the last chunk the loss needs it
                    outputs.extend(map(weakref.ref, result))
                return result

            return run

        # No operation of a linear layer saves what it gives: only the bundle could hold it.
        bundle, place = stepped(env, store, kind, watched)
        is_last = place.stage == 2
        assert len(outputs) == 8 * (chunks - is_last)
        assert all(p.grad is not None for p in bundle.stage.parameters())

    run_ranks((3,), main, tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_each_chunk_is_armed_once_after_the_last_forward(
    kind: tuple[str, int], tmp_path: Path
) -> None:
    schedule, chunks = kind

    def main(env: RankEnv, store: Store) -> None:
        topology = Topology(Shape((2, 1)), (3,), chunks)
        place = topology.places[env.rank]
        stage = toy_stages(2, chunks)[place.stage]
        bundle = make_bundle(env, store, topology, stage, schedule)
        for num_microbatches in (3, 1):
            seen: list[object] = []
            toy_step(bundle, place, topology.shape.widths[place.stage], num_microbatches, seen)
            first, *armed = seen
            assert first == "forwards done"
            has_work = place.replica < num_microbatches
            assert armed == (list(range(chunks))[::-1] if has_work else [])

    run_ranks((3,), main, tmp_path)
