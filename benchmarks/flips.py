"""Bits that flip in one of three replicas: found in how many steps, and who is named."""

from __future__ import annotations

import copy
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import FileStore
from torch.utils.hooks import RemovableHandle

from benchmarks.alarms import TIMES_OVER, busy
from benchmarks.cluster.forked import Seat, rank_envs
from benchmarks.results.record import Check, Options
from benchmarks.workload.training import FixedSteps
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.corruption.marks import read_marks
from bundlerun.launcher.errors import CorruptionError, DivergedError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.trainer import Trainer

CLAIM = "a bit that flips in one replica is found within 50 steps, and nothing else is"
FLIPS = 100
"""Of each kind."""
WITHIN = 50
MINUTES = 30.0
REPLICAS = 3
STATE = ("parameter", "buffer", "optimizer state")
COMPUTED = ("activation", "gradient")
MODEL = f"{Path(__file__).parent / 'workload' / 'small_cnn.py'}:build"


def run(options: Options) -> None:
    """Flips bits of each kind, then trains without any on a machine that is loaded four times."""
    rows: list[dict[str, Any]] = []
    for kind in (*STATE, *COMPUTED):
        if options.wants(kind):
            found = _ranks(_flipped, kind, options.faults or FLIPS, options.seed)
            rows.append(_row(kind, found[0]))
            print(rows[-1], flush=True)
    quiet: Mapping[str, Any] = {}
    if options.wants("quiet"):
        minutes = options.minutes or MINUTES
        with busy(TIMES_OVER * (os.cpu_count() or 1)):
            (quiet, *_) = _ranks(_quiet, minutes)
        print(quiet, flush=True)
    missed = sum(row["flips"] - row["found"] - row["gone"] for row in rows)
    unnamed = sum(row["found"] - row["named"] for row in rows)
    longest = max((row["most_steps"] for row in rows), default=0)
    options.record(
        "flips",
        {"rows": rows, "quiet": dict(quiet)},
        [
            Check("flips that stayed and were not found, at most", missed, 0),
            Check("steps until one is found, at most", longest, WITHIN),
            Check("found without the culprit's name, at most", unnamed, 0),
            Check("false alarms in the quiet run, at most", quiet.get("alarms", 0), 0),
        ],
    )


def _row(kind: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found = [each for each in results if each["how"] in ("compared", "diverged")]
    steps = [each["steps"] for each in found]
    return {
        "kind": kind,
        "flips": len(results),
        "found": len(found),
        "named": sum(each["is_named"] for each in found),
        # No loss that is a number, and no state that differs: the run ends, and says why.
        "diverged": sum(each["how"] == "diverged" for each in found),
        "gone": sum(each["how"] == "gone" for each in results),
        "median_steps": statistics.median(steps) if steps else 0,
        "most_steps": max(steps, default=0),
    }


# --- ranks


def _ranks(main: Callable[..., Any], *rest: object) -> list[Any]:
    """What `main` gives on three ranks, each on a node of its own as far as it knows."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="bundlerun-flips-") as folder:
        answers = context.Queue()
        barrier = context.Barrier(REPLICAS)
        envs = rank_envs((1,) * REPLICAS)

        def rank(number: int, answers: Queue[Any]) -> None:
            torch.set_num_threads(1)
            store = FileStore(f"{folder}/store", REPLICAS)
            store.set_timeout(timedelta(seconds=120))
            seat = Seat(env=envs[number], store=store, barrier=barrier)
            answers.put((number, main(seat, folder, *rest)))

        processes = [context.Process(target=rank, args=(n, answers)) for n in range(REPLICAS)]
        for process in processes:
            process.start()
        found = sorted(answers.get() for _ in processes)
        for process in processes:
            process.join()
        return [answer for _, answer in found]


class _Trained:
    """A small model that three replicas train, and can put back to where it was."""

    def __init__(self, seat: Seat, folder: str) -> None:
        config = TrainConfig(
            data="synthetic", model=MODEL, num_classes=10, image_size=16, batch_size=24,
            microbatch_size=4, epochs=1, lr=0.05, shape=Shape((1,)), cut=(), sync="local-master",
            verify_steps=40, run_dir=folder, timeout_s=120.0, augment="none", snapshot="off",
        )  # fmt: skip
        self.paths = RunPaths(Path(folder))
        generator = torch.Generator().manual_seed(1)
        samples = [
            Batch((torch.randn(4, 3, 16, 16, generator=generator),), torch.arange(4), 0)
            for _ in range(6)
        ]
        self._steps = FixedSteps(seat, config, "flips", samples)
        for _ in range(3):
            self._steps.step()
        self.trainer: Trainer = self._steps.trainer
        self._kept = copy.deepcopy(
            (self.trainer.stage.state_dict(), self.trainer.optimizer.state_dict())
        )

    def put_back(self) -> None:
        model, optimizer = copy.deepcopy(self._kept)
        self.trainer.stage.load_state_dict(model)
        self.trainer.optimizer.load_state_dict(optimizer)

    def outcome(self, most: int) -> tuple[str, int]:
        """What ends the next steps, and after how many."""
        for number in range(most):
            try:
                self._steps.step()
            except CorruptionError:
                return "compared", number + 1
            except DivergedError:
                return "diverged", number + 1
        return "missed", most


def _quiet(seat: Seat, folder: str, minutes: float) -> dict[str, Any]:
    """Trains without a flip; what was found all the same."""
    trained = _Trained(seat, folder)
    num_steps = alarms = 0
    until = time.monotonic() + 60 * minutes
    while True:
        # All end after the same: one decides.
        is_over = torch.tensor([float(time.monotonic() > until and seat.env.rank == 0)])
        if trained.trainer.sync.all_sum(is_over.double()).item():
            return {"minutes": minutes, "steps": num_steps, "alarms": alarms}
        how, steps = trained.outcome(100)
        num_steps += steps
        if how != "missed":
            alarms += 1
            trained.put_back()


def _flipped(seat: Seat, folder: str, kind: str, count: int, seed: int) -> list[dict[str, Any]]:
    trained = _Trained(seat, folder)
    draw = random.Random(f"{seed} {kind}")  # the same on all ranks
    results = []
    for number in range(count):
        trained.put_back()
        trained.trainer.verifier.begins(number, 0, 0)
        trained.outcome(draw.randrange(10))  # so that it falls anywhere in a period
        victim, bit = draw.randrange(REPLICAS), draw.randrange(32)
        place, element = draw.random(), draw.random()
        hook: RemovableHandle | None = None
        if seat.env.rank == victim:
            if kind in STATE:
                tensors = _tensors(trained.trainer, kind)
                _flip(tensors[int(place * len(tensors))], element, bit)
            else:
                hook = _wrong_layer(trained.trainer.stage, kind, place, bit)
        how, steps = trained.outcome(WITHIN)
        if hook is not None:
            hook.remove()
        if how == "missed" and kind in STATE and _is_equal(trained.trainer):
            how = "gone"
        marks = [m for m in read_marks(trained.paths) if m.era == number]
        is_named = how == "diverged" or [m.culprits for m in marks] == [(f"node{victim}",)]
        results.append({"how": how, "steps": steps, "is_named": is_named})
    return results


def _is_equal(trainer: Trainer) -> bool:
    """Whether a flip has left nothing, as the numbers after it were rounded to the same."""
    trainer.verifier._is_whole = True
    try:
        trainer.verifier.verify(0)
    except CorruptionError:
        return False
    finally:
        trainer.verifier._is_whole = False
    return True


def _tensors(trainer: Trainer, kind: str) -> list[Tensor]:
    if kind == "parameter":
        return [p.detach() for p in trainer.stage.parameters()]
    if kind == "buffer":
        return [b for b in trainer.stage.buffers() if b.is_floating_point()]
    states = trainer.optimizer.state.values()
    return [t for state in states for t in state.values() if isinstance(t, Tensor)]


def _flip(tensor: Tensor, place: float, bit: int) -> None:
    words = tensor.detach().view(-1).view(torch.int32)
    flipped = 1 << bit if bit < 31 else -(1 << 31)
    words[int(place * len(words))] ^= flipped


class _Wrong(torch.autograd.Function):
    """A layer whose output, or its gradient, has one bit that is wrong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: str, place: float, bit: int) -> Tensor:  # noqa: ANN401
        ctx.how = kind, place, bit
        y = x.clone(memory_format=torch.contiguous_format)
        if kind == "activation":
            _flip(y, place, bit)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:  # noqa: ANN401
        kind, place, bit = ctx.how
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        if kind == "gradient":
            _flip(gradient, place, bit)
        return gradient, None, None, None


def _wrong_layer(stage: nn.Module, kind: str, place: float, bit: int) -> RemovableHandle:
    layers = [m for m in stage.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    layer = layers[int(place * len(layers))]

    def wrong(*call: Any) -> Tensor:  # noqa: ANN401 (of torch)
        found: Tensor = _Wrong.apply(call[-1], kind, place, bit)
        return found

    return layer.register_forward_hook(wrong)
