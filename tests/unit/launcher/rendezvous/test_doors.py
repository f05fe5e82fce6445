"""Where coordinators listen, and who is let in."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import psutil
import pytest
from torch.distributed.elastic.rendezvous import (
    RendezvousClosedError,
    RendezvousConnectionError,
    RendezvousTimeoutError,
)

from bundlerun.launcher.rendezvous.probe import is_rendezvous
from bundlerun.launcher.rendezvous.token import ensure_token
from bundlerun.launcher.run_folder.paths import RunPaths
from tests.unit.launcher.rendezvous.jobs import CONSOLE, LIMIT_S, Job


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
        "connections; it keeps trying; it gives up in "
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
