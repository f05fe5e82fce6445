"""A loop that is protected, in one process: what comes back after an error, and from disk."""

from __future__ import annotations

import random
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bundlerun import Protection, protect
from bundlerun.launcher.errors import CheckpointError, ConfigError
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


class Counter:
    """Something of a user's own, of which each rank has another."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen, "last": tuple(self.seen[-1:])}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen = list(state["seen"])
        assert state["last"] == tuple(self.seen[-1:])


class Loop:
    """A loop with everything that has to come back: dropout, running means, averages, draws."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(1)
        random.seed(1)
        np.random.seed(1)
        self.folder = folder
        self.model = nn.Sequential(
            nn.Embedding(7, 6, max_norm=1.0), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Dropout(0.3)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.1)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, 0.2, total_steps=40)
        self.average = AveragedModel(self.model)
        self.counter = Counter()
        self.done: list[int] = []

    def train(self, num_steps: int, fail_at: int = -1, ask_at: int = -1) -> None:
        objects = self.model, self.optimizer, self.schedule, self.average
        with protect(
            *objects,
            run_dir=self.folder / "run",
            each_rank=[self.counter],
            protection=Protection(snapshot_steps=1, snapshot_dir=str(self.folder / "memory")),
        ) as run:
            for step in run.steps(num_steps):
                if step == fail_at:
                    raise RuntimeError("as if the machine had failed")
                if step == ask_at:
                    signal.raise_signal(signal.SIGTERM)
                self._step()
                run.note(loss=self.counter.seen[-1])
                self.done.append(step)
            self.is_stopped = run.is_stopped
        self.end = self._state()

    def _step(self) -> None:
        words = torch.randint(7, (8,)) + 0 * random.randrange(7)
        loss = self.model(words).square().mean() + float(np.random.rand())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.model)
        self.counter.seen.append(loss.item())

    def _state(self) -> list[Tensor]:
        moments = [v for s in self.optimizer.state.values() for v in s.values()]
        numbers = torch.tensor([*self.counter.seen, self.optimizer.param_groups[0]["lr"]])
        draws = torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])
        weights = [*self.model.state_dict().values(), *self.average.state_dict().values()]
        return [*weights, *moments, numbers, draws]


def assert_same(one: Loop, other: Loop) -> None:
    pairs = zip(one.end, other.end, strict=True)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@pytest.fixture
def whole(tmp_path: Path) -> Loop:
    loop = Loop(tmp_path / "whole")
    loop.train(9)
    return loop


def test_a_loop_that_failed_goes_on_after_the_last_step_to_the_same_bits(
    whole: Loop, tmp_path: Path
) -> None:
    for fail_at in (1, 2, 6):
        failed = Loop(tmp_path)
        with pytest.raises(RuntimeError, match="as if"):
            failed.train(9, fail_at=fail_at)
        assert failed.done[-1:] == [fail_at - 1]
    last = Loop(tmp_path)
    last.train(9)
    assert last.done == [6, 7, 8]
    assert_same(whole, last)
    # Memory is given back once the disk has the last state.
    assert list((tmp_path / "memory").iterdir()) == []
    outcome = read_outcome(RunPaths(tmp_path / "run"))
    assert outcome is not None
    assert (outcome.state, outcome.step) == ("done", 9)
    # Each step once, with its loss: what failed before its line was due had it kept back.
    rows = read_rows(RunPaths(tmp_path / "run").metrics)
    steps = [row for row in rows if row["kind"] == "step"]
    assert [row["step"] for row in steps] == list(range(9))
    assert [row["loss"] for row in steps] == whole.counter.seen
    assert [row["step"] for row in rows if row["kind"] == "restart"] == [1, 2, 6]
    assert rows[-1]["kind"] == "end"


def test_a_loop_that_was_told_to_stop_goes_on_from_disk_to_the_same_bits(
    whole: Loop, tmp_path: Path
) -> None:
    stopped = Loop(tmp_path)
    stopped.train(9, ask_at=3)
    # All ranks ask each other at the begin of a step, so it is the next one.
    assert stopped.is_stopped
    assert stopped.done == [0, 1, 2, 3, 4]
    outcome = read_outcome(RunPaths(tmp_path / "run"))
    assert outcome is not None
    assert (outcome.state, outcome.exit_code) == ("stopped", 75)
    again = Loop(tmp_path)
    again.train(9)
    assert again.done == [5, 6, 7, 8]
    assert_same(whole, again)


def test_a_finished_loop_has_nothing_left_to_do_and_can_be_made_longer(tmp_path: Path) -> None:
    for num_steps, done in ((3, [0, 1, 2]), (3, []), (5, [3, 4])):
        loop = Loop(tmp_path)
        loop.train(num_steps)
        assert loop.done == done


def test_steps_that_no_optimizer_takes_are_kept_too(tmp_path: Path) -> None:
    def train(num_steps: int, fail_at: int) -> Tensor:
        model = nn.Linear(2, 2)
        nn.init.zeros_(model.bias)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        kept = Protection(snapshot_steps=1, snapshot_dir=str(tmp_path / "memory"))
        with protect(model, optimizer, run_dir=tmp_path / "run", protection=kept) as run:
            for step in run.steps(num_steps):
                if step == fail_at:
                    raise RuntimeError("as if")
                if step % 2:
                    continue  # as a loss scale leaves one out
                with torch.no_grad():
                    model.bias += 1.0  # a step of somebody's own
        return model.bias.detach()

    with pytest.raises(RuntimeError):
        train(6, fail_at=3)
    assert train(6, fail_at=-1).tolist() == [3.0, 3.0]


def test_signals_are_as_before_once_the_loop_is_over(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Loop(tmp_path).train(1)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_is_no_loop_is_refused_with_what_would_be_right(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = protect(model, optimizer, run_dir=tmp_path / "run")
    with pytest.raises(ConfigError, match="inside of `with protect"):
        next(run.steps(1))
    with run:
        pass
    with pytest.raises(ConfigError, match="was entered before"), run:
        pass
    with pytest.raises(ConfigError, match="got nothing to keep"):
        protect()
    with pytest.raises(ConfigError, match="got a function, which has no state_dict"):
        protect(print_nothing)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got one Linear twice"):
        protect(model, model)
    kept = Counter()
    kept.seen = [print_nothing]  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"counter: \['seen'\]\[0\] is of type function"):
        protect(kept)


def test_what_is_no_list_of_objects_or_no_protection_is_refused() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigError, match="each_rank is a Linear; give a list of objects"):
        protect(model, each_rank=nn.Linear(2, 2))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"protection=\{'keep': 1\} is no Protection"):
        protect(model, protection={"keep": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"model\.weight, which has no values before a"):
        protect(nn.LazyLinear(3))


def test_a_folder_has_one_open_loop_of_a_process_at_a_time(tmp_path: Path) -> None:
    for _ in range(2):  # one after the other is no matter
        with protect(nn.Linear(3, 2), run_dir=tmp_path / "run"):
            with (
                pytest.raises(ConfigError, match="is that of a loop which is open in this process"),
                protect(nn.Linear(3, 2), run_dir=tmp_path / "run"),
            ):
                pass
            with protect(nn.Linear(3, 2), run_dir=tmp_path / "other"):
                pass


def print_nothing() -> None:
    pass


def test_the_state_of_other_objects_is_refused_by_name(tmp_path: Path) -> None:
    Loop(tmp_path).train(1)
    model = nn.Linear(3, 2)
    with (
        pytest.raises(CheckpointError, match="model does not take up its state of the run"),
        protect(model, run_dir=tmp_path / "run"),
    ):
        pass
    others = model, nn.Linear(2, 2), nn.Linear(2, 2)
    with (
        pytest.raises(
            CheckpointError, match="nothing of 'model3', it has model, model2, onecyclelr"
        ),
        protect(*others, run_dir=tmp_path / "run"),
    ):
        pass
