"""A stream is read alike by any number of processes, from any place, and its length is kept to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.readers import (
    Source,
    check_samples,
    is_stream,
    num_samples_of,
    read_first,
)
from bundlerun.workers.data.samples import Batch, Request
from bundlerun.workers.data.streams.digest import digest_of
from bundlerun.workers.data.streams.reader import StreamReader
from bundlerun.workers.recipe import DataSets, UnreadableSample

CONFIG = TrainConfig(data="made-up", seed=7, timeout_s=20)
NUM = 11
MICROBATCHES = [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10]]


class Stream(IterableDataset[Any]):
    """Shuffles its samples by Python's generator, and draws in each from torch's."""

    def __init__(self, length: int = NUM, bad: int = -1) -> None:
        self._length, self._bad, self._epoch = length, bad, -1
        self.num_passes = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        # As data sets of other libraries do, each loading process would give a part only.
        info = get_worker_info()
        part, num_parts = (info.id, info.num_workers) if info else (0, 1)
        self.num_passes += 1
        order = list(range(part, self._length, num_parts))
        random.shuffle(order)
        for index in order:
            if index == self._bad:
                raise UnreadableSample("cannot read 'x.tar'")
            yield torch.rand(2), 1000 * self._epoch + index


class Sized(Stream):
    """Says its length."""

    def __len__(self) -> int:
        return NUM


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[tuple[float, int]]:
        number = 0
        while True:
            yield float(number), number
            number += 1


def read(
    stream: Any, microbatches: list[list[int]], num_workers: int = 0, *, epoch: int = 3
) -> list[Batch]:
    count = None if hasattr(stream, "__len__") else NUM
    loader = MicrobatchLoader(stream, config=CONFIG, num_samples=count, num_workers=num_workers)
    with closing(loader):
        return list(loader.batches(microbatches, epoch=epoch))


def assert_same(found: list[Batch], wanted: list[Batch]) -> None:
    for one, two in zip(found, wanted, strict=True):
        assert torch.equal(one.inputs[0], two.inputs[0])
        assert torch.equal(one.target, two.target)


def test_a_pass_has_each_sample_once_and_epochs_differ() -> None:
    passes = [
        torch.cat([batch.target for batch in read(Sized(), MICROBATCHES, epoch=epoch)]).tolist()
        for epoch in (3, 4)
    ]
    assert [sorted(found) for found in passes] == [
        [1000 * epoch + n for n in range(NUM)] for epoch in (3, 4)
    ]
    assert [n % 1000 for n in passes[0]] != [n % 1000 for n in passes[1]]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_any_number_of_processes_reads_the_same(num_workers: int) -> None:
    wanted = read(Stream(), MICROBATCHES)
    assert_same(read(Stream(), MICROBATCHES, num_workers), wanted)
    # A rank that does every other micro-batch, and one that goes on in the middle.
    assert_same(read(Stream(), MICROBATCHES[1::2], num_workers), wanted[1::2])
    assert_same(read(Stream(), MICROBATCHES[2:], num_workers), wanted[2:])


def test_a_loader_goes_back_and_on_to_another_epoch() -> None:
    stream, torch_state = Stream(), torch.get_rng_state()
    wanted = read(Stream(), MICROBATCHES)
    with closing(MicrobatchLoader(stream, config=CONFIG, num_samples=NUM, num_workers=0)) as loader:
        assert_same(list(loader.batches(MICROBATCHES[:1], epoch=3)), wanted[:1])
        assert_same(list(loader.batches(MICROBATCHES[1:2], epoch=3)), wanted[1:2])
        assert stream.num_passes == 1  # it has gone on
        assert_same(list(loader.batches(MICROBATCHES, epoch=3)), wanted)
        other = list(loader.batches(MICROBATCHES, epoch=4))
        assert_same(list(loader.batches(MICROBATCHES, epoch=3)), wanted)
    assert_same(other, read(Stream(), MICROBATCHES, epoch=4))
    assert stream.num_passes == 4
    # Without loading processes, training draws from the same generators.
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_an_endless_stream_has_as_many_samples_as_the_recipe_says() -> None:
    (batch,) = read(Endless(), [[9, 10]])
    assert batch.target.tolist() == [9, 10]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        (Stream(NUM - 1), "the stream Stream has ended after 10 of 11 samples; say with DataSets"),
        (Sized(NUM - 1), "the stream Sized has ended after 10 of 11 samples; say with DataSets"),
        (Sized(NUM + 1), "says that it has 11 samples, and gives more; say how many there are"),
        (Stream(bad=2), "cannot read 'x.tar'; a stream has no other sample for it: leave it out"),
    ],
)
def test_a_stream_of_another_length_or_with_a_bad_sample_is_one_line(
    stream: Stream, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read(stream, MICROBATCHES)
    assert "\n" not in str(caught.value)


def test_a_stream_that_is_longer_than_the_recipe_says_gives_its_beginning() -> None:
    assert len(torch.cat([batch.target for batch in read(Stream(99), MICROBATCHES)])) == NUM


def test_errors_of_the_users_own_code_keep_their_place() -> None:
    class Broken(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield 1.0, 1
            raise ZeroDivisionError

    reader = StreamReader(Broken(), num_samples=2, seed=0)
    with pytest.raises(ZeroDivisionError):
        reader[Request(0, [0, 1])]
    assert get_worker_info() is None


def test_the_first_samples_are_the_first_of_the_stream() -> None:
    data = DataSets(train=Sized(), val=None, num_outputs=3)
    assert read_first(data, CONFIG, 99).batch is not None
    batch, _ = read_first(data, CONFIG, 2)
    assert batch is not None
    assert batch.target.tolist() == read(Sized(), MICROBATCHES, epoch=0)[0].target[:2].tolist()


def test_what_is_a_stream_and_how_long_it_is() -> None:
    assert is_stream(Stream())
    assert is_stream({1, 2})
    assert not is_stream([1])
    assert not is_stream(iter([1]))
    assert num_samples_of(Source([1, 2])) == 2
    assert num_samples_of(Source(Stream(), num_samples=5)) == 5
    assert num_samples_of(Source(Sized())) == NUM


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": Stream(), "val": None}, r"\(num_train=...\)$"),
        ({"train": Stream(), "val": None, "num_train": 0}, "num_train=0.* must be 1 or more"),
        ({"train": [1], "val": None, "num_train": 1}, "is for streams, and train=... is a list of"),
        ({"train": [1], "val": Stream()}, r"does not say how many .*\(num_val=...\)$"),
        (
            {"train": [1], "val": iter(())},
            "a tuple_iterator, which gives no samples by number, and",
        ),
        ({"train": 7, "val": None}, r"train=\.\.\.\) is a int, which gives no samples by number"),
    ],
)
def test_what_has_neither_numbers_nor_a_length_is_refused_by_name(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_samples(DataSets(**data, num_outputs=1))


def test_a_digest_tells_samples_and_not_how_they_round() -> None:
    generator = torch.Generator().manual_seed(1)
    x, image = torch.randn(100, generator=generator), Image.new("RGB", (9, 9), (1, 2, 3))
    sample = ({"x": x, "image": image, "text": "a"}, np.int64(3))
    same = ({"x": x * (1 + 1e-7), "image": image.copy(), "text": "a"}, np.int64(3))
    assert digest_of(sample) == digest_of(same)
    others = [
        ({"x": x, "image": image, "text": "b"}, np.int64(3)),
        ({"x": x, "image": image, "text": "a"}, np.int64(4)),
        ({"x": x.flip(0) + 0.1, "image": image, "text": "a"}, np.int64(3)),
        ({"x": x, "image": Image.new("RGB", (9, 9), (9, 2, 3)), "text": "a"}, np.int64(3)),
        ({"y": x, "image": image, "text": "a"}, np.int64(3)),
    ]
    assert len({digest_of(each) for each in (sample, *others)}) == 6
    for odd in (x.bfloat16(), torch.randn(3, dtype=torch.cfloat), object(), [], 1.5, {1: b"x"}):
        assert digest_of(odd) == digest_of(odd)
