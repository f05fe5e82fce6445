"""Nodes whose options differ do not meet, and are told which."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters

from bundlerun.launcher.rendezvous.door import get_handler
from bundlerun.launcher.rendezvous.handler import BundleRendezvousHandler, NodesDiffer
from tests.unit.launcher.rendezvous.jobs import LIMIT_S, Job, worker_failed
from tests.waiting import wait_until


def terms(lr: str) -> str:
    return json.dumps({"--lr": lr, "--seed": "0"})


def differing(call: Future[RendezvousInfo]) -> str:
    with pytest.raises(NodesDiffer) as caught:
        call.result(10.0)
    return str(caught.value)


def test_nodes_with_other_options_all_end_before_the_first_round(job: Job) -> None:
    job.nodes = (2, 3)
    one = job.start(1, terms=terms("0.1"))
    alike = job.start(2, terms=terms("0.1"))
    other = job.start(3, terms=terms("0.2"))
    calls = [job.call(handler.next_rendezvous) for handler in (one, alike, other)]
    for text in map(differing, calls):
        assert text.startswith("--lr is 0.1 on n1 and 0.2 on n3; give all nodes the same")


def test_a_node_with_other_options_that_comes_later_ends_alone(job: Job) -> None:
    one, two = job.start(1, terms=terms("0.1")), job.start(2, terms=terms("0.1"))
    infos = job.meet(one, two)
    late = job.start(3, terms=terms("0.2"))
    assert "0.2 on n3" in differing(job.call(late.next_rendezvous))
    late.shutdown()
    assert not one.is_closed()
    assert one.num_nodes_waiting() == two.num_nodes_waiting() == 0
    infos[0].store.set("key", "value")  # the round goes on
    call = job.call(two.next_rendezvous)  # and so does the job: the next one comes as ever
    wait_until(lambda: one.num_nodes_waiting() == 1)
    job.meet(one)
    assert call.result(LIMIT_S).world_size == 2


def test_a_node_that_knows_no_terms_is_compared_later(job: Job) -> None:
    infos = job.meet(job.start(1, terms=terms("0.1")), job.start(2))
    assert {info.world_size for info in infos} == {2}


def test_a_first_node_that_starts_again_with_other_options_ends_alone(tmp_path: Path) -> None:
    job = Job(nodes=(1, 3), first_wait=1.0, minority_wait=0.5, fence_dir=str(tmp_path))
    ports = (job.port, job.port + 1)

    def start(index: int, lr: str) -> BundleRendezvousHandler:
        endpoint = f"127.0.0.1:{ports[0]},127.0.0.2:{ports[1]}"
        config = job.conf | {"node_name": f"n{index}", "terms": terms(lr)}
        local = f"127.0.0.{index}"
        params = RendezvousParameters(
            "bundle", endpoint, "job", *job.nodes, local_addr=local, **config
        )
        handler = get_handler()(params)
        assert isinstance(handler, BundleRendezvousHandler)
        job.handlers.append(handler)
        return handler

    one, two = start(1, "0.1"), start(2, "0.1")
    job.meet(one, two)
    try:
        raise worker_failed()
    except ChildFailedError:
        one.shutdown()
    wait_until(lambda: two.num_nodes_waiting() == 1)
    (alone,) = job.meet(two)
    again = start(1, "0.2")  # a candidate, whose endpoint comes before the one that is active
    assert "0.2 on n1" in differing(job.call(again.next_rendezvous))
    again.shutdown()
    assert not two.is_closed()
    assert (alone.world_size, two.num_nodes_waiting()) == (1, 0)
    two.shutdown()
    job.pool.shutdown(wait=False, cancel_futures=True)
