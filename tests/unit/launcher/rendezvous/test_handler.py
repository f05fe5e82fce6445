"""Handlers over real sockets, as torch calls them; several nodes of this process."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousTimeoutError,
)

from bundlerun.launcher.ranks.node_ranks import Ranks
from bundlerun.launcher.rendezvous.door import get_handler
from bundlerun.launcher.rendezvous.handler import BundleRendezvousHandler, NodesDiffer
from bundlerun.launcher.rendezvous.probe import is_rendezvous
from bundlerun.launcher.rendezvous.token import ensure_token
from bundlerun.launcher.run_folder.events import Events
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.waiting import wait_until

LIMIT_S = 30.0

CONSOLE = "bundlerun.launcher.console"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """Nodes 127.0.0.1, ...: each with its handler; calls that block run in threads."""

    def __init__(self, nodes: tuple[int, int] = (1, 2), **conf: object) -> None:
        self.port, self.second_port = free_port(), free_port()
        self.ends = f"127.0.0.1:{self.port}"
        self.nodes = nodes
        self.conf = {"num_workers": 2, "heartbeat": 0.1} | conf
        self.handlers: list[BundleRendezvousHandler] = []
        self.pool = ThreadPoolExecutor(8)

    def start(self, index: int, run_id: str = "job", **conf: object) -> BundleRendezvousHandler:
        config = self.conf | {"node_name": f"n{index}"} | conf
        params = RendezvousParameters(
            "bundle",
            self.ends,
            run_id,
            *self.nodes,
            **{"local_addr": f"127.0.0.{index}"} | config,
        )
        handler = get_handler()(params)
        assert isinstance(handler, BundleRendezvousHandler)
        self.handlers.append(handler)
        return handler

    def call(self, work: Callable[[], RendezvousInfo]) -> Future[RendezvousInfo]:
        return self.pool.submit(work)

    def meet(self, *handlers: BundleRendezvousHandler) -> list[RendezvousInfo]:
        calls = [self.call(handler.next_rendezvous) for handler in handlers]
        return [call.result(LIMIT_S) for call in calls]


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    yield made
    for handler in made.handlers:
        with suppress(Exception):
            handler.shutdown()
    made.pool.shutdown(wait=False, cancel_futures=True)


def worker_failed() -> ChildFailedError:
    """What torch's launcher raises once an agent has no attempt left."""
    return ChildFailedError("worker", {0: ProcessFailure(0, 1, 1, "")})


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


def test_coordinator_and_store_listen_at_the_address_given_and_nowhere_else(job: Job) -> None:
    def listening() -> set[tuple[str, int]]:
        return {
            (link.laddr.ip, link.laddr.port)
            for link in psutil.Process().net_connections("inet")
            if link.status == psutil.CONN_LISTEN
        }

    before = listening()
    infos = job.meet(job.start(1), job.start(2))
    (store,) = {
        (info.bootstrap_store_info.master_addr, info.bootstrap_store_info.master_port)
        for info in infos
        if info.bootstrap_store_info
    }
    assert listening() - before == {("127.0.0.1", job.port), store}
    assert store[0] in ("127.0.0.1", "127.0.0.2")


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


def test_another_token_is_refused_and_told(job: Job) -> None:
    job.start(1)
    other = job.start(2, run_id="another", join_timeout=1)
    with pytest.raises(RendezvousTimeoutError, match="another token or another --rdzv-id"):
        other.next_rendezvous()


def test_two_token_files_where_one_belongs_are_told(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bundlerun.launcher.rendezvous.node.REFUSED_S", 0.5)
    files = [ensure_token(RunPaths(tmp_path / name)) for name in ("one", "two")]
    job.start(1, token_file=files[0])
    other = job.start(2, token_file=files[1])
    with pytest.raises(RendezvousClosedError, match=r"two/rendezvous/token': all nodes must see"):
        other.next_rendezvous()


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
    wait_until(lambda: one.num_nodes_waiting() == 1)
    lines = [record.message for record in caplog.records if record.name == CONSOLE]
    assert "node n1: round 1 is over: node n2 is lost, it " in lines[-1]
    assert lines[-1].endswith("; its ranks start again")
    (first, ranks), (second, others) = (line.split(": ") for line in sorted(lines[:2]))
    assert first == "node n1 is in round 1 with node n2"
    assert second == "node n2 is in round 1 with node n1"
    assert {ranks, others} == {f"ranks {pair} of 4 are here" for pair in ("0 to 1", "2 to 3")}


def test_an_endpoint_where_nobody_is_is_told_within_seconds(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.nodes = (2, 2)
    lost = job.start(2, join_timeout=4)
    with pytest.raises(RendezvousTimeoutError, match="refuses connections"):
        lost.next_rendezvous()
    told = [record.message for record in caplog.records if record.name == CONSOLE]
    assert told[0].startswith(
        f"node n2 waits: no endpoint of the rendezvous answers: 127.0.0.1:{job.port} refuses "
        "connections; it goes on trying; it gives up in "
    )


def test_a_name_that_another_node_has_is_refused(job: Job) -> None:
    job.meet(job.start(1), job.start(2))
    with pytest.raises(RendezvousClosedError, match="node name 'n2' is taken by"):
        job.start(3, node_name="n2").next_rendezvous()


def test_a_stranger_at_the_endpoint_is_told_at_once(job: Job) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", job.port))
        listener.listen()
        greeting = threading.Thread(target=lambda: listener.accept()[0].sendall(b"hello\n"))
        greeting.start()
        with pytest.raises(RendezvousConnectionError, match="cannot listen at 127"):
            job.start(1)
        greeting.join(LIMIT_S)


def test_a_coordinator_greets(job: Job) -> None:
    assert not is_rendezvous("127.0.0.1", job.port)
    job.start(1)
    assert is_rendezvous("127.0.0.1", job.port)


def test_noise_and_silence_on_the_wire_disturb_nobody(job: Job) -> None:
    one, two = job.start(1), job.start(2)
    job.meet(one, two)
    links = []
    for noise in (b"", b"\n", b"{}\n", b'{"nonce": 3}\n', b"\xff\xfe\n", b'{"mac": "\xc3\xa9"}\n'):
        link = socket.create_connection(("127.0.0.1", job.port), timeout=LIMIT_S)
        link.sendall(noise)
        links.append(link)
    time.sleep(0.3)
    assert [one.num_nodes_waiting(), two.num_nodes_waiting()] == [0, 0]
    for link in links:
        link.close()


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


def test_agents_of_one_address_keep_one_of_its_endpoints_each(
    job: Job, caplog: pytest.LogCaptureFixture
) -> None:
    job.ends = f"127.0.0.1:{job.port},127.0.0.1:{job.second_port}"
    one, two = (job.start(n, local_addr="127.0.0.1", node_name=f"n{n}") for n in (1, 2))
    assert [h._node.member.seat.candidate for h in (one, two)] == [0, 1]
    job.meet(one, two)
    assert all(is_rendezvous("127.0.0.1", port) for port in (job.port, job.second_port))
    assert "no node keeps" not in caplog.text
    third = job.start(3, local_addr="127.0.0.1", node_name="n3")
    assert third._node.member.seat.candidate == -1


def test_an_endpoint_that_nobody_keeps_is_told(caplog: pytest.LogCaptureFixture) -> None:
    job = Job(nodes=(1, 2), first_wait=0)
    job.ends = f"127.0.0.1:{job.port},127.0.0.1:{job.second_port}"
    one = job.start(1)
    try:
        job.meet(one)
    finally:
        one.shutdown()
    assert f"node n1: no node keeps 127.0.0.1:{job.second_port}" in caplog.text
