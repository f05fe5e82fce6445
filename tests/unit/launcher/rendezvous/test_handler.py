"""Handlers over real sockets, as torch calls them; several nodes of this process."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousTimeoutError

from bundlerun.launcher.ranks.node_ranks import Ranks
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.unit.launcher.rendezvous.jobs import CONSOLE, LIMIT_S, Job, worker_failed
from tests.waiting import wait_until


def test_two_nodes_meet_at_a_store_of_their_own(job: Job, tmp_path: Path) -> None:
    one = job.start(1, events_dir=str(tmp_path))
    two = job.start(2)
    assert one.use_agent_store
    assert (one.get_backend(), one.get_run_id()) == ("bundle", "job")
    infos = job.meet(one, two)
    assert sorted(info.rank for info in infos) == [0, 1]
    assert {info.world_size for info in infos} == {2}
    first, second = (info.bootstrap_store_info for info in infos)
    assert first is not None
    assert second is not None
    assert (first.master_addr, first.master_port) == (second.master_addr, second.master_port)
    infos[0].store.set("key", "value")
    assert infos[1].store.get("key") == b"value"
    # torch's agent asks for the ranks; the round answers.
    assert json.loads(infos[0].store.get("torchelastic/assigned_ranks/1")) == [2, 4, 2, 4]
    assert [one.num_nodes_waiting(), two.num_nodes_waiting()] == [0, 0]
    events = [json.loads(line)["event"] for line in (tmp_path / "n1.jsonl").open()]
    assert "in a round" in events


def test_a_node_that_comes_again_makes_the_others_come(job: Job) -> None:
    one, two = job.start(1), job.start(2)
    before = job.meet(one, two)
    call = job.call(two.next_rendezvous)
    wait_until(lambda: one.num_nodes_waiting() == 1)
    (after,) = job.meet(one)
    assert after.rank == before[0].rank
    assert call.result(LIMIT_S).rank == before[1].rank
    old, new = (info.bootstrap_store_info for info in (before[0], after))
    assert old is not None
    assert new is not None
    assert old.master_port != new.master_port
    assert one.num_nodes_waiting() == 0


def test_a_node_that_leaves_with_an_error_does_not_close_the_job(job: Job) -> None:
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    try:
        raise worker_failed()
    except ChildFailedError:
        two.shutdown()
    wait_until(lambda: one.num_nodes_waiting() == 1)
    (info,) = job.meet(one)
    assert (info.rank, info.world_size) == (0, 1)
    assert not one.is_closed()


def test_too_few_nodes_after_an_error_end_the_job_with_the_story(job: Job) -> None:
    job.nodes = (2, 2)
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    try:
        raise worker_failed()
    except ChildFailedError:
        two.shutdown()
    wait_until(one.is_closed)
    with pytest.raises(RendezvousClosedError, match=r"node n2 gave up .* needs 2"):
        one.next_rendezvous()


def test_success_ends_the_job_for_a_spare_node_too(job: Job) -> None:
    one, two, three = job.start(1), job.start(2), job.start(3)
    job.meet(one, two)
    spare = job.call(three.next_rendezvous)
    time.sleep(0.3)
    assert not spare.done()
    two.shutdown()
    with pytest.raises(SystemExit) as caught:
        spare.result(LIMIT_S)
    assert caught.value.code == 0
    assert one.is_closed()
    assert one.num_nodes_waiting() == 0


def test_the_error_behind_another_start_is_told(
    job: Job, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="bundlerun.launcher.console")
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    one._ranks._board.run_dir = str(tmp_path)
    events = Events(RunPaths(tmp_path).node_events("n1"), "n1")
    events.note("failed", {"local_rank": 1, "text": "Traceback ...\nValueError: boom"})
    job.meet(one, two)
    story = "node n1: local rank 1 failed: ValueError: boom; all ranks start again"
    told = [record.message for record in caplog.records if record.name == CONSOLE]
    assert told.count(story) == 1


@pytest.mark.parametrize(
    ("has_stopped", "end"),
    [(False, "the workers have finished"), (True, "the workers have stopped, and can go on")],
)
def test_a_run_that_was_stopped_is_over_in_other_words_than_one_that_is_done(
    has_stopped: bool,
    end: str,
    job: Job,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO", logger="bundlerun.launcher.console")
    monkeypatch.setattr(Ranks, "have_stopped", has_stopped)
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    two.shutdown()
    wait_until(one.is_closed)
    one.shutdown()
    for name in ("n1", "n2"):
        assert f"node {name}: the run is over: {end}" in caplog.messages


def test_a_reason_to_close_is_everyones(job: Job) -> None:
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    one.set_closed("three attempts finished no step")
    wait_until(lambda: two.num_nodes_waiting() == 1)
    with pytest.raises(RendezvousClosedError, match="three attempts finished no step"):
        two.next_rendezvous()


@pytest.mark.parametrize("place", ["callback", "task"])
def test_a_rendezvous_that_fails_ends_its_node_and_is_silent(job: Job, place: str) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("a mistake")

    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    node = one._node
    node._call(lambda: 1 / 0 if place == "callback" else node._tasks.spawn(fail()))
    wait_until(lambda: bool(one.num_nodes_waiting()))
    with pytest.raises(RendezvousClosedError, match="this node's rendezvous failed: ZeroDivision"):
        one.next_rendezvous()
    wait_until(lambda: bool(two.num_nodes_waiting()))  # the only endpoint says nothing more


def test_too_few_nodes_in_time_are_told_by_name(job: Job) -> None:
    job.nodes = (2, 2)
    one = job.start(1, join_timeout=1)
    with pytest.raises(RendezvousTimeoutError, match=r"1 of at least 2 nodes are here \(n1\)"):
        one.next_rendezvous()


def test_every_node_is_told_that_it_is_in_and_who_is_lost(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    two._node.stop()

    def told() -> list[str]:
        return [record.message for record in caplog.records if record.name == CONSOLE]

    wait_until(lambda: len(told()) > 2)  # the node's own thread tells
    assert one.num_nodes_waiting() == 1
    lines = told()
    assert "node n1: round 1 is over: node n2 is lost, it " in lines[-1]
    assert lines[-1].endswith("; its ranks start again")
    (first, ranks), (second, others) = (line.split(": ") for line in sorted(lines[:2]))
    assert first == "node n1 is in round 1 with node n2"
    assert second == "node n2 is in round 1 with node n1"
    assert {ranks, others} == {f"ranks {pair} of 4 are here" for pair in ("0 to 1", "2 to 3")}
