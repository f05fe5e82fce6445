"""What a receive waits for has left before it is posted (I17), for each rank and schedule.

Ranks are threads, links are lists; each rank's log says in which order it posted and sent.
"""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Link, Topology
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.pipeline import links
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.pipeline.message import Specs
from bundlerun.workers.pipeline.nccl import NcclReceiver
from bundlerun.workers.pipeline.wires import Wires
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.step import StepShare, StepWork

Event = tuple[str, Link, int]
"""What happened to which message of a link."""


class Wire:
    """Stands for the group of a link."""

    def __init__(self, link: Link, log: dict[int, list[Event]], posts_ahead: int) -> None:
        self.link = link
        self.log = log
        self.posts_ahead = posts_ahead
        self.messages: queue.Queue[list[Tensor]] = queue.Queue()


class _Sender:
    def __init__(self, wire: Wire) -> None:
        self._wire, self._count = wire, 0

    def send(self, tensors: Sequence[Tensor]) -> None:
        self._wire.log[self._wire.link.src].append(("send", self._wire.link, self._count))
        self._wire.messages.put(list(tensors))
        self._count += 1

    def wait(self, most_left: int) -> None: ...

    def finish(self) -> None: ...


class _Receiver:
    def __init__(self, wire: Wire) -> None:
        self._wire, self._count = wire, 0
        self.posts_ahead = wire.posts_ahead

    def post(self, specs: Specs) -> Callable[[], list[Tensor]]:
        wire, number = self._wire, self._count
        self._count += 1
        wire.log[wire.link.dst].append(("post", wire.link, number))

        def arrived() -> list[Tensor]:
            found = wire.messages.get(timeout=20)
            wire.log[wire.link.dst].append(("take", wire.link, number))
            return [t.clone() for t in found]

        return arrived


class _Recipe:
    def loss(self, result: Tensor, target: Tensor) -> Tensor:
        return (result - target).square().mean()

    def metrics(self, result: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {}


def batches(count: int) -> Iterator[Batch]:
    for _ in range(count):
        yield Batch((torch.ones(2, 3),), torch.ones(2, 3), 0)


def logs(
    topology: Topology, schedule: str, posts_ahead: int, monkeypatch: pytest.MonkeyPatch
) -> dict[int, list[Event]]:
    """What each rank did in two steps of five micro-batches."""
    log: dict[int, list[Event]] = defaultdict(list)
    wires: Any = {link: Wire(link, log, posts_ahead) for link in topology.links}
    monkeypatch.setattr(links, "open_sender", _Sender)
    monkeypatch.setattr(links, "open_receiver", lambda wire, device: _Receiver(wire))
    failures: list[BaseException] = []

    def rank(number: int) -> None:
        place = topology.places[number]
        own = {link: wire for link, wire in wires.items() if number in (link.src, link.dst)}
        try:
            pipeline, device = Pipeline.of(topology, schedule), torch.device("cpu")
            bundle = Bundle(
                wires=Wires(topology, place, own, pipeline, device),
                pipeline=pipeline,
                stage=nn.Sequential(*(nn.Linear(3, 3) for _ in range(topology.chunks_per_stage))),
                recipe=_Recipe(),  # type: ignore[arg-type]
                arithmetic=Arithmetic(device, "float32"),
                meters=Meters(),
                forwards=[nn.Linear(3, 3) for _ in range(topology.chunks_per_stage)],
            )
            for step in range(2):
                work = StepWork(seed=0, step=step, first=0, sizes=[2] * 5, num_samples=10)
                bundle.train(work, batches(5), StepShare())
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=rank, args=(n,)) for n in range(topology.world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures, failures
    assert not any(thread.is_alive() for thread in threads)
    return log


def posted_too_early(log: dict[int, list[Event]]) -> list[Event]:
    """Receives posted before something that the peer needs for the message has left."""
    found = []
    for rank, events in log.items():
        for place, event in enumerate(events):
            if event[0] != "post":
                continue
            link, number = event[1:]
            peer = log[link.src]
            before = peer[: peer.index(("send", link, number))]
            needed = [e for e in before if e[0] == "take" and e[1].src == rank]
            missing = [e for e in needed if ("send", *e[1:]) not in events[:place]]
            found += [event] if missing else []
    return found


SCHEDULES = [((1, 1), 1, "1f1b"), ((1, 1, 1), 1, "zero-bubble"), ((2, 1), 1, "eager-1f1b")]


@pytest.mark.parametrize(("shape", "chunks", "schedule"), [*SCHEDULES, ((1, 1), 2, "interleaved")])
def test_what_a_receive_over_nccl_waits_for_has_left_before_it_is_posted(
    shape: tuple[int, ...], chunks: int, schedule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    topology = Topology(Shape(shape), (sum(shape),), chunks)
    log = logs(topology, schedule, NcclReceiver.posts_ahead, monkeypatch)
    assert posted_too_early(log) == []


def test_receives_posted_ahead_would_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    log = logs(Topology(Shape((1, 1)), (2,)), "1f1b", 2, monkeypatch)
    assert posted_too_early(log)
