"""What a rank works on: the first micro-batch may be looked at ahead of training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.loaders import NodeCores
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.rank.session import Session
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


def feed_of(samples: Counted) -> Feed:
    config = TrainConfig(
        data="x", batch_size=4, microbatch_size=2, loader_workers=0, validate=False
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
