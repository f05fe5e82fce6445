"""Through failures, on more ranks and on fewer, each sample is used once per epoch."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.order import num_steps
from bundlerun.workers.data.samples import Reader, Request
from bundlerun.workers.state.checkpoint import Checkpoints
from bundlerun.workers.trainer import Trainer
from tests.ranks.reference import train_unsplit
from tests.ranks.state import test_snapshot
from tests.ranks.state.killed_runs import killed_run, restarts, shaped
from tests.ranks.training.test_parity import assert_close, losses_of, run_state

NUM_STEPS = 10  # two epochs
Failure = tuple[tuple[int, ...], str, int, int]
"""Ranks of each node, where one of them is killed, which, in which step."""

CHAINS: dict[str, list[Failure]] = {
    "grows and shrinks": [
        ((2, 2), "forward", 3, 1),
        ((2, 4), "checkpoint", 0, 4),
        ((2,), "backward", 1, 6),
        ((2, 2, 2), "optimizer", 2, 1),  # the second one it does
    ],
    "checkpoints": [
        ((2, 2), "checkpoint", 1, 2),
        ((2, 2), "checkpoint", 0, 4),
        ((2, 2), "copy", 3, 7),
    ],
}


class SampleLog:
    """Who read which sample in which step of which attempt; a file per rank."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.attempt = 0
        self._folder = folder
        self._step = 0  # also of what the check before the first step reads ahead
        self._is_example = False  # read before any step, to know what the model is called with
        folder.mkdir()
        step, read, example = Trainer.step, Reader.__getitem__, Feed.example

        def unnoted_example(feed: Feed, num_samples: int) -> object:
            self._is_example = True
            found = example(feed, num_samples)
            self._is_example = False
            return found

        def noted_step(trainer: Trainer, work: Any, *rest: Any) -> object:
            self._step = work.step
            return step(trainer, work, *rest)

        def noted_read(reader: Reader, request: Request) -> object:
            if self._is_example:
                return read(reader, request)
            row = [self.attempt, self._step, request.epoch, list(request.indices)]
            with (self._folder / str(os.getpid())).open("a") as file:
                file.write(f"{json.dumps(row)}\n")
            return read(reader, request)

        monkeypatch.setattr(Trainer, "step", noted_step)
        monkeypatch.setattr(Feed, "example", unnoted_example)
        monkeypatch.setattr(Reader, "__getitem__", noted_read)

    def of_last_attempts(self) -> dict[int, list[tuple[int, int]]]:
        """Epoch and index of the samples of each step, as it was done the last time."""
        found: defaultdict[int, defaultdict[int, list[tuple[int, int]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for path in self._folder.iterdir():
            for line in path.read_text().splitlines():
                attempt, step, epoch, indices = json.loads(line)
                found[step][attempt] += [(epoch, index) for index in indices]
        return {step: attempts[max(attempts)] for step, attempts in found.items()}


@pytest.mark.parametrize("chain", CHAINS)
def test_each_sample_counts_once_per_epoch_whatever_fails(
    chain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        test_snapshot.PLACES,
        "checkpoint",
        (Checkpoints, "write_part", lambda step: lambda _, at, *__: at == step),
    )
    config = shaped((1, 1), tmp_path, max_steps=NUM_STEPS, checkpoint_steps=2, validate=False)
    samples = SampleLog(tmp_path / "samples", monkeypatch)
    for nodes, place, rank, step in CHAINS[chain]:
        killed_run(config, nodes, tmp_path, place, rank, step)
        samples.attempt += 1
    state = run_state(config, (2, 2), tmp_path)
    monkeypatch.undo()

    assert len(restarts(tmp_path)) == len(CHAINS[chain])
    _assert_once(samples.of_last_attempts(), config.synthetic_samples, config.batch_size)
    reference = train_unsplit(replace(config, shape=Shape((1,)), cut=()), NUM_STEPS)
    assert_close(state, reference.state, 1e-10)
    assert losses_of(tmp_path) == pytest.approx(reference.losses, rel=1e-10)


def _assert_once(
    steps: dict[int, list[tuple[int, int]]], num_samples: int, batch_size: int
) -> None:
    per_epoch = num_steps(num_samples, batch_size)
    assert sorted(steps) == list(range(NUM_STEPS))
    for epoch in range(NUM_STEPS // per_epoch):
        used: Sequence[tuple[int, int]] = [
            sample for step in range(per_epoch) for sample in steps[epoch * per_epoch + step]
        ]
        assert sorted(used) == [(epoch, index) for index in range(num_samples)]
