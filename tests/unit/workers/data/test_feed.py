"""What a rank works on: the first micro-batch may be looked at ahead of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch.utils.data import IterableDataset

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.loaders import NodeCores
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.order import Speeds
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.recipe import DataInfo, DataSets, Sample


class Counted:
    """Samples that know how often they were read."""

    def __init__(self) -> None:
        self.reads: list[int] = []

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Sample:
        self.reads.append(index)
        return torch.full((2,), float(index)) + torch.rand(2), index % 3


class TensorStream(IterableDataset[Sample]):
    def __iter__(self) -> Iterator[Sample]:
        return ((torch.ones(1), 0) for _ in range(10))


def feed_of(samples: Any, **options: Any) -> Feed:
    config = TrainConfig(
        data="x", batch_size=4, microbatch_size=2, loader_workers=0, validate=False, **options
    )
    topology = Topology(Shape((1,)), (1,))
    session: Any = SimpleNamespace(
        place=topology.places[0],
        topology=topology,
        device=torch.device("cpu"),
        arrival=SimpleNamespace(cores=NodeCores()),
    )
    data = DataSets(train=samples, val=None, num_outputs=3)
    info = DataInfo(num_train=10, num_val=0, num_outputs=3)
    return Feed(config, cast(Session, session), info, data)


def test_what_is_looked_at_ahead_is_read_once_and_stays_the_first() -> None:
    plain, ahead = Counted(), Counted()
    feed = feed_of(ahead)
    inputs = feed.first_inputs()
    assert inputs is not None
    assert len(ahead.reads) == 2
    found = [batch.inputs[0] for batch in feed.epoch(0, 0)[1]]
    wanted = [batch.inputs[0] for batch in feed_of(plain).epoch(0, 0)[1]]
    assert torch.equal(inputs[0], wanted[0])
    assert all(torch.equal(one, two) for one, two in zip(found, wanted, strict=True))
    assert ahead.reads == plain.reads


def test_a_run_that_goes_on_elsewhere_drops_it() -> None:
    samples = Counted()
    feed = feed_of(samples)
    feed.first_inputs()
    found = [batch.target for batch in feed.epoch(0, 1)[1]]
    assert sum(map(len, found)) == 6
    assert len(list(feed.epoch(0, 0)[1])) == 5


class Ordered(Counted):
    """Says its own order."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self._order = order

    def epoch_order(self, seed: int, epoch: int) -> list[int]:
        return self._order[epoch:] + self._order[:epoch]

    def names_digest(self) -> str:
        return "mine"


def test_a_sample_that_an_epoch_has_again_is_otherwise_random() -> None:
    found = [b.inputs[0] for b in feed_of(Counted(), ra_reps=2).epoch(0, 0)[1]]
    again = [b.inputs[0] for b in feed_of(Counted(), ra_reps=2).epoch(0, 0)[1]]
    assert torch.equal(torch.cat(found), torch.cat(again))
    numbers = torch.cat(found)[:, 0].floor().tolist()
    assert len(numbers) == 10
    assert sorted(numbers) == sorted([*set(numbers)] * 2)
    # Of the two times, each micro-batch of a step has one.
    for first, second in zip(found[::2], found[1::2], strict=False):
        assert torch.equal(first.floor(), second.floor())
        assert not torch.equal(first, second)
    # What comes once is as it is without.
    plain = torch.cat([b.inputs[0] for b in feed_of(Counted()).epoch(0, 0)[1]])
    assert any(torch.equal(found[0][0], each) for each in plain)


def test_a_stream_comes_once() -> None:
    with pytest.raises(ConfigError, match="--ra-reps 2 takes each sample several times"):
        feed_of(TensorStream(), ra_reps=2)


def test_samples_may_say_the_order_of_an_epoch() -> None:
    samples = Ordered([3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    feed = feed_of(samples)
    list(feed.epoch(1, 0)[1])
    assert samples.reads == [1, 4, 0, 5, 9, 2, 6, 8, 7, 3]
    assert feed.digests() == {"training": "mine"}


@pytest.mark.parametrize("order", [[0] * 10, list(range(9)), list(range(1, 11))])
def test_an_order_that_does_not_have_each_sample_once_is_refused(order: list[int]) -> None:
    with pytest.raises(ConfigError, match="of Ordered does not have each of the numbers 0 to 9 on"):
        feed_of(Ordered(order)).epoch(0, 0)


def test_streams_are_told_from_others_by_their_first_samples() -> None:
    class Stream:
        def __init__(self, first: int) -> None:
            self._first = first

        def __len__(self) -> int:
            return 10

        def __iter__(self) -> Iterator[Sample]:
            return (([float(n)], n) for n in range(self._first, self._first + 10))

    feeds = [feed_of(Stream(first)) for first in (0, 0, 1)]
    assert feeds[0].digests() == feeds[1].digests() != feeds[2].digests()
    targets = [batch.target.tolist() for batch in feeds[0].epoch(0, 1)[1]]
    assert targets == [[4, 5], [6, 7], [8, 9]]


def shared_feed(
    samples: Any, bundle: int, num_workers: int, num_bundles: int = 2, before: Feed | None = None
) -> Feed:
    """Of one of some bundles that share steps of four micro-batches of one sample."""
    config = TrainConfig(
        data="x", batch_size=4, microbatch_size=1, loader_workers=num_workers, validate=False
    )
    topology = Topology(Shape((1,)), (1,) * num_bundles)
    num_train = 40 if isinstance(samples, IterableDataset) else None
    session: Any = SimpleNamespace(
        place=topology.places[bundle],
        topology=topology,
        device=torch.device("cpu"),
        arrival=SimpleNamespace(cores=NodeCores()),
    )
    data = DataSets(train=samples, val=None, num_outputs=3, num_train=num_train)
    info = DataInfo(num_train=40, num_val=0, num_outputs=3)
    return Feed(config, cast(Session, session), info, data, before)


class Numbers(IterableDataset[Sample]):
    """A stream."""

    def __iter__(self) -> Iterator[Sample]:
        return ((torch.tensor([float(i)]), 0) for i in range(40))


class Numbered:
    """The same by number."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Sample:
        return torch.tensor([float(index)]), 0


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [Numbers, Numbered])
def test_shares_that_change_within_an_epoch_use_each_sample_once(
    kind: type, num_workers: int
) -> None:
    samples = kind()
    feeds = [shared_feed(samples, bundle, num_workers) for bundle in range(2)]
    ways = [feed.epoch(0, 0) for feed in feeds]
    steps: list[list[float]] = []
    counts, first = [], 0
    for step in range(10):
        asked_for = max(feed.asked_for() for feed in feeds)
        works = [next(way[0]) for way in ways]
        assert [work.step for work in works] == [step, step]
        counts.append([len(work.sizes) for work in works])
        took = [[next(way[1]) for _ in work.sizes] for way, work in zip(ways, works, strict=True)]
        steps.append([float(b.inputs[0]) for own in took for b in own])
        if step == 1:
            first = 1 + max(step + 1, asked_for)
            for feed in feeds:
                feed.share_from(first, Speeds((1.0, 3.0), (0.0, 0.0)))
    for feed in feeds:
        feed.close()
    assert first < 9, "the change is to fall into the epoch"
    assert counts == [[2, 2]] * first + [[3, 1]] * (10 - first)
    wanted, plain = shared_feed(samples, 0, 0), []
    wanted.share_from(0, Speeds((1.0, 1000.0), (0.0, 0.0)))
    works, batches = wanted.epoch(0, 0)
    for work in works:
        plain.append([float(next(batches).inputs[0]) for _ in work.sizes])
    # The same micro-batches in the same order, whoever does them (I1).
    assert steps == plain
    assert sorted(x for step in steps for x in step) == list(range(40))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [Numbers, Numbered])
def test_a_bundle_that_joins_within_an_epoch_rests_first_and_each_sample_is_used_once(
    kind: type, num_workers: int
) -> None:
    samples = kind()
    before = [shared_feed(samples, bundle, num_workers) for bundle in range(2)]
    steps = taken(before, 0, 3)
    feeds = [
        shared_feed(samples, bundle, num_workers, 3, old)
        for bundle, old in enumerate([*before, None])
    ]
    for feed in feeds:
        feed.rest(3, 2)
    steps += taken(feeds, 3, 10)
    for feed in (*before, *feeds):
        feed.close()
    assert [[len(own) for own in step] for step in steps] == [
        *[[2, 2]] * 3, [2, 2, 0], *[[2, 1, 1]] * 6,
    ]  # fmt: skip
    alone = shared_feed(samples, 0, 0, 1)
    wanted = [list(chain(*step)) for step in taken([alone], 0, 10)]
    # The same micro-batches in the same order, whoever does them (I1).
    assert [list(chain(*step)) for step in steps] == wanted


def test_a_feed_that_goes_on_keeps_loader_and_order_where_samples_have_numbers() -> None:
    first = shared_feed(Numbered(), 0, 0)
    first.epoch(0, 0)
    loader, cuts = first._loader, first._cuts
    second = shared_feed(Numbered(), 0, 0, 3, first)
    second.epoch(0, 4)
    assert second._loader is loader
    assert second._cuts is cuts
    assert first._loader is None  # closing it ends nothing


def taken(feeds: Sequence[Feed], first: int, end: int) -> list[list[list[float]]]:
    """The samples of each feed in the steps from `first` to before `end`, of one epoch."""
    ways = [feed.epoch(0, first) for feed in feeds]
    found = []
    for _ in range(first, end):
        works = [next(way[0]) for way in ways]
        pairs = zip(ways, works, strict=True)
        found.append([[float(next(way[1]).inputs[0]) for _ in work.sizes] for way, work in pairs])
    return found


def test_a_rank_with_nothing_to_read_has_nothing_asked_for() -> None:
    feed = shared_feed(Numbered(), 1, 0)
    feed.share_from(0, Speeds((1.0, 1000.0), (0.0, 0.0)))
    _, batches = feed.epoch(0, 0)
    assert list(batches) == []
    # Its loader has seen that there is nothing up to the end: until then nothing may change.
    assert feed.asked_for() == 9
