"""Nodes that are examined together, all in this process, on the loopback."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.doctor.document import document, text
from bundlerun.launcher.doctor.findings import Finding, Level, ok
from bundlerun.launcher.doctor.local import Wanted
from bundlerun.launcher.doctor.peers import lead, member, together
from bundlerun.launcher.doctor.peers.door import Door
from bundlerun.launcher.doctor.peers.places import Places, parse_peers, places_of
from bundlerun.launcher.doctor.peers.together import Group, Outcome, examine_together
from bundlerun.launcher.doctor.peers.wire import Reach, Secret, Unreached, connect
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.options.endpoints import Endpoint

LOOPBACK = "127.0.0.1"
SECRET = Secret(b"ours")


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind((LOOPBACK, 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def groups(folder: Path, number: int, wait_s: float = 20.0) -> list[Group]:
    """One for each of several nodes on this machine."""
    endpoints = tuple(Endpoint(host=LOOPBACK, port=port) for port in free_ports(number))
    return [
        Group(
            places=Places(endpoints=endpoints, kept=(index,)),
            secret=SECRET,
            wait_s=wait_s,
            shared=folder / "run",
            name=f"n{index}",
        )
        for index in range(number)
    ]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node's own examination has tests of its own."""

    def found(wanted: Wanted, environ: Mapping[str, str]) -> list[Finding]:
        return [ok("alike", "on all"), ok("address", wanted.address)]

    monkeypatch.setattr(together, "examine", found)
    monkeypatch.setattr(lead, "seconds_each", lambda num_nodes: 0.05)


def run(members: Sequence[Group]) -> list[Outcome]:
    def one(group: Group) -> Outcome:
        wanted = Wanted(run_dir=Path("unused"), data=group.name)
        return examine_together(group, wanted, {}, lambda line: None)

    with ThreadPoolExecutor(max_workers=len(members)) as pool:
        return list(pool.map(one, members))


def subjects(outcome: Outcome) -> dict[str, Level]:
    assert outcome.together is not None
    return {each.subject: each.level for each in outcome.together.between}


def test_three_nodes_measure_every_link_and_see_one_folder(tmp_path: Path) -> None:
    first, *others = run(groups(tmp_path, 3))
    report = first.together
    assert report is not None
    assert [node.name for node in report.nodes] == ["n0", "n1", "n2"]
    assert len(report.links) == 6
    for link in report.links:
        assert (link.port, link.free) == (Reach.OK, Reach.OK)
        assert link.bytes_per_s
        assert link.rtt_s
    assert subjects(first).keys() >= {"clocks", "rates", "latency", "shared folder"}
    assert subjects(first)["shared folder"] is Level.OK
    assert [other.verdict["errors"] for other in others] == [0, 0]
    assert list(tmp_path.iterdir()) == []
    plain = json.loads(json.dumps(document(report, 1.0)))
    assert len(plain["links"]) == 6
    assert {link["port"] for link in plain["links"]} == {"ok"}
    lines = text(report, 1.0).splitlines()
    assert lines[0] == "on all nodes"
    assert sum("alike" in line for line in lines) == 1


def test_who_sees_another_folder_or_has_another_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terms(name: str) -> dict[str, str]:
        return {"torch": "2.15.0" if name == "n2" else "2.14.1"}

    monkeypatch.setattr(together, "terms_of_node", terms)
    monkeypatch.setattr(member, "SEE_S", 0.3)
    first, second, third = groups(tmp_path, 3)
    (tmp_path / "elsewhere").mkdir()
    third = replace(third, shared=tmp_path / "elsewhere" / "run")
    told, left, _ = run([first, second, third])
    assert told.together is not None
    errors = {e.subject: e.text for e in told.together.between if e.level is Level.ERROR}
    assert errors.keys() == {"torch", "shared folder"}
    assert errors["torch"] == "torch is 2.14.1 on n0, n1 and 2.15.0 on n2"
    assert "n2 does not see" in errors["shared folder"]
    assert left.verdict["errors"] == 2


def test_who_does_not_come_or_has_another_secret_is_named(tmp_path: Path) -> None:
    first, stranger, _ = groups(tmp_path, 3, wait_s=1.5)
    told, alone = run([first, replace(stranger, secret=Secret(b"theirs"))])
    found = subjects(told)
    assert (found["node 2"], found["node 3"]) == (Level.ERROR, Level.ERROR)
    assert told.together is not None
    texts = {each.subject: each.text for each in told.together.between}
    assert "another secret" in texts["node 2"]
    assert "nothing listens there" in texts["node 3"]
    assert alone.verdict == {}
    assert alone.own[-1].level is Level.ERROR
    assert "another secret" in alone.own[-1].text


def test_who_goes_away_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = groups(tmp_path, 2)

    def fail(data: str) -> dict[str, str]:
        if data == "n1":
            raise MemoryError
        return {}

    monkeypatch.setattr(together, "terms_of_node", fail)
    monkeypatch.setattr(member, "FINDINGS_S", 0.2)
    with ThreadPoolExecutor() as pool:
        told, gone = (pool.submit(run, [group]) for group in (first, second))
        assert isinstance(gone.exception(), MemoryError)
        (outcome,) = told.result()
    assert subjects(outcome) == {"node 2": Level.ERROR}


def test_a_list_that_differs_is_told(tmp_path: Path) -> None:
    first, second = groups(tmp_path, 2, wait_s=1.5)
    longer = (*second.places.endpoints, Endpoint(host=LOOPBACK, port=1))
    second = replace(second, places=replace(second.places, endpoints=longer))
    told, _ = run([first, second])
    assert told.together is not None
    assert "node 2 of the list has a list of 3" in [e.text for e in told.together.between]


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    group, _ = groups(tmp_path, 2)
    own = group.places.endpoints[0]
    assert own is not None
    with socket.socket() as other:
        other.bind((own.host, own.port))
        other.listen()
        with pytest.raises(NodeError, match=f"cannot listen at {own}: address already in use"):
            run([group])


def test_a_door_opens_for_nobody_without_the_secret() -> None:
    served: list[object] = []
    with Door(LOOPBACK, 0, SECRET, lambda link, hello: served.append(hello)) as door:
        with pytest.raises(Unreached) as refused:
            connect(LOOPBACK, door.port, Secret(b"other"), limit_s=5.0)
        assert refused.value.reach is Reach.DENIED
        with socket.create_connection((LOOPBACK, door.free_port), timeout=5.0) as stranger:
            stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger.settimeout(5.0)
            heard = b"".join(iter(lambda: _received(stranger), b""))
        assert heard.count(b"\n") == 1  # a challenge, and no more
    assert served == []


def _received(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except ConnectionResetError:
        return b""


def test_what_is_no_doctor_is_a_stranger() -> None:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        listener.listen()

        def greet() -> None:
            other, _ = listener.accept()
            with other:
                other.sendall(b"SSH-2.0-OpenSSH\r\n")

        with ThreadPoolExecutor() as pool:
            pool.submit(greet)
            with pytest.raises(Unreached) as refused:
                connect(LOOPBACK, listener.getsockname()[1], SECRET, limit_s=5.0)
    assert refused.value.reach is Reach.STRANGER


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("doctor --peers a", "--peers 'a' names one node; name all"),
        ("doctor --peers a,a", "--peers 'a,a' names an endpoint twice"),
        ("doctor --peers a:x,b", "--peers 'a:x' is not HOST:PORT"),
        ("doctor --peers 192.0.2.77,192.0.2.78", "--peers names no address of this node"),
        ("doctor --quick --wait-s 0", "--wait-s 0.0 must be above 0"),
    ],
)
def test_a_wrong_list_is_one_line(
    words: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert len(captured.err.splitlines()) == 1


def test_nodes_of_one_machine_take_one_place_each() -> None:
    places = places_of(parse_peers("127.0.0.1:7001,127.0.0.1:7002,no-such-name.invalid"), "")
    assert places.kept == (0, 1)
    assert places.endpoints[2] is None


def test_a_name_that_is_the_loopback_here_gets_the_address_that_peers_see(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bundlerun.launcher.doctor.peers import places as module

    book = {"a": "127.0.1.1", "b": "10.0.0.2"}
    monkeypatch.setattr(module, "resolve", lambda host, option: book[host])
    monkeypatch.setattr(module, "route_to", lambda host, port: "10.0.0.1")
    places = places_of(parse_peers("a,b"), "")
    assert places.kept == (0,)
    assert [str(each) for each in places.endpoints] == ["10.0.0.1:29400", "10.0.0.2:29400"]
    assert places.note == "a is 127.0.1.1 here, where peers meet 10.0.0.1"


def test_an_allocation_gets_the_same_command_on_each_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Any] = []

    def start(words: list[str], env: dict[str, str]) -> Any:
        started.append((words, env))
        return type("Done", (), {"returncode": 3})

    monkeypatch.setattr("subprocess.run", start)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    monkeypatch.delenv("BUNDLERUN_TOKEN", raising=False)
    assert main(["doctor", "--json", "--run-dir", "/shared/run", "/data"]) == 3
    ((words, env),) = started
    assert words[:4] == ["srun", "--nodes=3", "--ntasks=3", "--ntasks-per-node=1"]
    assert words[-5:] == [
        "--devices=auto",
        "--wait-s=30.0",
        "--json",
        "--run-dir=/shared/run",
        "/data",
    ]
    assert len(env["BUNDLERUN_TOKEN"]) == 64
