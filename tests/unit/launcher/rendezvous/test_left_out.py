"""Nodes whose replica was wrong take no part any more; the others go on."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from bundlerun.launcher.corruption.quarantine import leave_out
from bundlerun.launcher.rendezvous.handler import BundleRendezvousHandler, NodeLeftOut, NodesDiffer
from tests.unit.launcher.rendezvous.jobs import LIMIT_S, Job, worker_failed
from tests.waiting import wait_until

WHY = "rank 1 has other bits"


def ends(handler: BundleRendezvousHandler) -> None:
    """As torch's agent does: it shuts down while the exception is on its way."""
    text = ""
    try:
        handler.next_rendezvous()
    except NodeLeftOut as exc:
        text = str(exc)
        handler.shutdown()
    assert WHY in text


def test_a_node_that_is_left_out_goes_and_the_others_meet_without_it(
    job: Job, tmp_path: Path
) -> None:
    job.nodes = (1, 2)
    folder = tmp_path / "left-out"
    one, two = (job.start(n, left_out_dir=str(folder)) for n in (1, 2))
    job.meet(one, two)
    leave_out(folder, "n2", WHY)
    # Its ranks have ended, and its agent asks for another round.
    ends(two)
    wait_until(lambda: one.num_nodes_waiting() == 1)
    (info,) = job.meet(one)
    assert info.world_size == 1
    # Started again, by whoever does that.
    again = job.start(2, left_out_dir=str(folder))
    ends(again)
    assert not one.is_closed()
    assert one.num_nodes_waiting() == 0


def test_the_coordinator_refuses_one_that_does_not_know_and_nobody_ends_with_it(
    job: Job, tmp_path: Path
) -> None:
    job.nodes = (1, 2)
    folder = tmp_path / "left-out"
    leave_out(folder, "n2", WHY)
    one = job.start(1, left_out_dir=str(folder), first_wait=1.0)
    unknowing = job.start(2)  # it does not see the folder
    call = job.call(unknowing.next_rendezvous)
    (info,) = job.meet(one)
    assert info.world_size == 1
    with pytest.raises(NodesDiffer, match=f"node n2 is left out for the rest of the run: {WHY}"):
        call.result(LIMIT_S)
    try:
        raise worker_failed()
    except ChildFailedError:
        unknowing.shutdown()
    assert not one.is_closed()
