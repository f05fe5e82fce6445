"""The loader gives the same batches however it reads them, and says why where it cannot."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError, NodeError
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.readers import Source
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.recipe import SampleSet, UnreadableSample

CONFIG = TrainConfig(data="made-up", seed=7, timeout_s=20)
MICROBATCHES = [[5, 1], [0, 3], [4]]


class Noisy:
    """Samples that draw from every generator; those of `bad` cannot be read."""

    def __init__(self, bad: tuple[int, ...] = (), length: int = 6) -> None:
        self._bad = bad
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> tuple[tuple[Tensor, Tensor], int]:
        if index in self._bad:
            raise UnreadableSample(f"cannot read the image '{index}.png': truncated")
        draws = torch.tensor([index, random.random(), np.random.rand()])
        return (draws, torch.rand(2)), index


class Deadly(Noisy):
    """Ends its process, or sleeps in it, at sample 3."""

    def __init__(self, *, sleeps: bool) -> None:
        super().__init__()
        self._sleeps = sleeps
        self.is_there = multiprocessing.get_context("fork").Event()

    def __getitem__(self, index: int, /) -> tuple[tuple[Tensor, Tensor], int]:
        if index == 3:
            self.is_there.set()
            time.sleep(1) if self._sleeps else os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def read(
    samples: SampleSet,
    microbatches: list[list[int]],
    *,
    num_workers: int = 0,
    epochs: tuple[int, ...] = (0,),
    config: TrainConfig = CONFIG,
) -> list[Batch]:
    loader = MicrobatchLoader(samples, config=config, num_workers=num_workers)
    with closing(loader):
        return [b for epoch in epochs for b in loader.batches(microbatches, epoch=epoch)]


def by_sample(batches: list[Batch]) -> dict[int, list[Tensor]]:
    return {
        int(target): [column[i] for column in batch.inputs]
        for batch in batches
        for i, target in enumerate(batch.target)
    }


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    ours_by, theirs_by = by_sample(ours), by_sample(theirs)
    assert ours_by.keys() == theirs_by.keys()
    for index, columns in ours_by.items():
        assert all(map(torch.equal, columns, theirs_by[index]))


def test_batches_come_stacked_and_in_the_order_asked_for() -> None:
    batches = read(Noisy(), MICROBATCHES)

    assert [batch.target.tolist() for batch in batches] == MICROBATCHES
    assert [column.shape for column in batches[0].inputs] == [(2, 3), (2, 2)]
    assert [batch.num_unreadable for batch in batches] == [0, 0, 0]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_the_number_of_loading_processes_changes_nothing(num_workers: int) -> None:
    here = read(Noisy(), MICROBATCHES, epochs=(0, 1))
    there = read(Noisy(), MICROBATCHES, epochs=(0, 1), num_workers=num_workers)

    assert [b.target.tolist() for b in there] == MICROBATCHES * 2
    assert_same(here[:3], there[:3])
    assert_same(here[3:], there[3:])


def test_a_sample_is_the_same_in_whichever_microbatch_a_rank_reads_it() -> None:
    assert_same(read(Noisy(), MICROBATCHES), read(Noisy(), [[4, 0, 3], [1], [5]]))


def test_what_is_random_depends_on_the_epoch_and_the_seed() -> None:
    first, second = (by_sample(read(Noisy(), [[2]], epochs=(e,)))[2] for e in (0, 1))
    other = by_sample(read(Noisy(), [[2]], config=replace(CONFIG, seed=8)))[2]

    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_random_numbers_of_training_alone(num_workers: int) -> None:
    def draw() -> list[float]:
        return [float(torch.rand(())), random.random(), float(np.random.rand())]

    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = draw()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    read(Noisy(), MICROBATCHES, num_workers=num_workers)

    assert draw() == expected


def test_batches_that_nobody_took_do_not_turn_up_in_the_next_epoch() -> None:
    with closing(MicrobatchLoader(Noisy(), config=CONFIG, num_workers=2)) as loader:
        next(loader.batches([[0], [1], [2], [3]], epoch=0))

        batches = list(loader.batches([[4], [5]], epoch=1))

    assert [batch.target.tolist() for batch in batches] == [[4], [5]]


def test_a_closed_loader_leaves_no_process_behind() -> None:
    loader = MicrobatchLoader(Noisy(), config=CONFIG, num_workers=1)
    next(loader.batches(MICROBATCHES, epoch=0))
    process = loader._answers._workers[0]  # type: ignore[attr-defined]

    loader.close()

    assert not process.is_alive()


def test_loading_processes_do_not_outlive_a_killed_rank() -> None:
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe()

    def be_a_rank() -> None:
        loader = MicrobatchLoader(Noisy(), config=CONFIG, num_workers=1)
        next(loader.batches(MICROBATCHES, epoch=0))
        theirs.send(loader._answers._workers[0].pid)  # type: ignore[attr-defined]
        time.sleep(60)

    rank = fork.Process(target=be_a_rank)
    rank.start()
    assert ours.poll(timeout=20)
    loading = psutil.Process(ours.recv())
    rank.kill()
    rank.join()

    # torch's own watch in the process would take up to 5 s.
    deadline = time.monotonic() + 2
    while is_running(loading) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(loading)


def is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_sample_is_named_with_the_next_step(num_workers: int) -> None:
    with pytest.raises(ConfigError) as caught:
        read(Noisy(bad=(3,)), MICROBATCHES, num_workers=num_workers)

    assert str(caught.value) == (
        "cannot read the image '3.png': truncated; replace it, or continue without it with "
        "--skip-unreadable"
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_next_readable_sample_stands_in_for_an_unreadable_one(
    num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = replace(CONFIG, skip_unreadable=True)
    samples = Noisy(bad=(5, 0, 3))

    batches = read(samples, MICROBATCHES, num_workers=num_workers, epochs=(0, 1), config=config)

    assert [b.target.tolist() for b in batches] == [[1, 1], [1, 4], [4]] * 2
    assert [b.num_unreadable for b in batches] == [1, 2, 0] * 2
    assert torch.equal(batches[0].inputs[1][0], batches[0].inputs[1][1])
    warned = [record.getMessage() for record in caplog.records]
    assert warned == [
        f"cannot read the image '{i}.png': truncated; the next readable sample stands in for it"
        for i in (5, 0, 3)
    ]


def test_data_without_one_readable_sample_ends() -> None:
    with pytest.raises(
        ConfigError, match=r"6 samples in a row are unreadable, the first: .*'1.png"
    ):
        read(Noisy(bad=tuple(range(6))), [[1]], config=replace(CONFIG, skip_unreadable=True))


def test_a_killed_loading_process_is_a_clear_error() -> None:
    with pytest.raises(NodeError, match=r"a loading process died .*--loader-workers, or 0$"):
        read(Deadly(sleeps=False), MICROBATCHES, num_workers=1)


def test_a_loading_process_that_hangs_is_a_clear_error() -> None:
    config = replace(CONFIG, timeout_s=0.2)

    with pytest.raises(NodeError, match=r"no loading process answered for 0.2 s; .*--timeout-s"):
        read(Deadly(sleeps=True), MICROBATCHES, num_workers=1, config=config)


def test_a_process_that_dies_while_the_loader_is_closed_hides_no_other_error() -> None:
    samples = Deadly(sleeps=True)
    loader = MicrobatchLoader(samples, config=CONFIG, num_workers=1)
    loader.batches([[3]], epoch=0)
    assert samples.is_there.wait(timeout=20)
    (process,) = loader._answers._workers  # type: ignore[attr-defined]
    threading.Timer(0.2, process.kill).start()

    loader.close()

    assert process.exitcode == -signal.SIGKILL


def test_a_mistake_in_a_recipe_keeps_its_traceback() -> None:
    class Mistaken(Noisy):
        def __getitem__(self, index: int, /) -> tuple[tuple[Tensor, Tensor], int]:
            raise ZeroDivisionError("a mistake")

    with pytest.raises(ZeroDivisionError, match=r"(?s)__getitem__.*a mistake"):
        read(Mistaken(), MICROBATCHES, num_workers=1)


def test_two_sources_share_the_processes_in_turn() -> None:
    other = Source(Noisy(length=4), Collate(split=lambda sample: (sample[0], sample[1] + 100)))
    with closing(MicrobatchLoader(Noisy(), config=CONFIG, others=[other], num_workers=2)) as loader:
        first = list(loader.batches(MICROBATCHES, epoch=0))
        before = processes_of(loader)
        second = list(loader.batches([[0, 3], [2]], epoch=0, source=1))
        third = list(loader.batches(MICROBATCHES, epoch=1))
        assert processes_of(loader) == before
    assert [batch.target.tolist() for batch in second] == [[100, 103], [102]]
    assert_same(first, read(Noisy(), MICROBATCHES))
    assert_same(third, read(Noisy(), MICROBATCHES, epochs=(1,)))


def processes_of(loader: MicrobatchLoader) -> set[int]:
    return {process.pid for process in loader._answers._workers}  # type: ignore[attr-defined]


class Where(Noisy):
    """Samples that say on which CPUs their process may run."""

    def __getitem__(self, index: int, /) -> tuple[tuple[Tensor, Tensor], int]:
        cpus = torch.tensor(sorted(os.sched_getaffinity(0)))
        return (cpus, torch.zeros(1)), index


def test_processes_may_run_where_they_are_told_wherever_their_rank_is_pinned() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("needs two CPUs")
    first, second, *_ = sorted(allowed)
    try:
        os.sched_setaffinity(0, {first})
        pinned = read(Where(), [[0]], num_workers=1)
        with closing(
            MicrobatchLoader(Where(), config=CONFIG, num_workers=1, cpus=(first, second))
        ) as loader:
            told = list(loader.batches([[0]], epoch=0))
        with closing(
            MicrobatchLoader(Where(), config=CONFIG, num_workers=1, cpus=(99_999,))
        ) as loader:
            not_there = list(loader.batches([[0]], epoch=0))
    finally:
        os.sched_setaffinity(0, allowed)
    assert pinned[0].inputs[0].tolist() == [[first]]
    assert told[0].inputs[0].tolist() == [[first, second]]
    assert not_there[0].inputs[0].tolist() == [[first]]


@pytest.fixture(autouse=True)
def _warnings(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.WARNING, logger="bundlerun.workers.data.loader"):
        yield
