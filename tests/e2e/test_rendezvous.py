"""Real agents that meet by `--rdzv-backend bundle`: whatever dies, the others go on.

The nodes are 127.0.0.1, 127.0.0.2, ... of this machine; each keeps an endpoint of the list.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster.programs import Program, Starter
from bundlerun.launcher.errors import EXIT_RESUMABLE
from bundlerun.launcher.rendezvous.handshake import Card, proof
from bundlerun.launcher.rendezvous.protocol.messages import Peek, Status, decode, encode
from tests.warm import Warm

BIN = Path(sys.executable).parent
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ACTOR = str(Path(__file__).with_name("rendezvous_actor.py"))
LIMIT_S = 120.0
RUN_ID = "e2e"
IN_A_ROUND = re.compile(r"round (\d+) rank (\d+) of (\d+) pid (\d+) at ([\d.]+)")


@dataclass(frozen=True)
class Entry:
    """A worker's line: it is in a round."""

    number: int
    rank: int
    size: int
    pid: int
    at: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Nodes:
    """Agents by index, from 1 on."""

    folder: Path
    words: Callable[[int], list[str]]
    starter: Starter
    running: dict[int, psutil.Process] = field(default_factory=dict)
    logs: list[Path] = field(default_factory=list)
    agents: dict[int, Program] = field(default_factory=dict)

    def start(self, index: int) -> None:
        log = self.folder / f"node{index}-{len(self.logs)}.log"
        self.logs.append(log)
        own = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "NODE": str(index)}
        with log.open("wb") as file:
            agent = self.starter(
                self.words(index),
                stdout=file,
                stderr=file,
                env=os.environ | own,
                cwd=Path.cwd(),
                start_new_session=True,
            )
        self.running[index] = psutil.Process(agent.pid)
        self.agents[index] = agent

    def family(self, index: int) -> list[psutil.Process]:
        agent = self.running[index]
        with suppress(psutil.NoSuchProcess):
            return [agent, *agent.children(recursive=True)]
        return []

    def signal(self, index: int, number: signal.Signals) -> None:
        """To an agent and all that it started, as nearly at once as can be."""
        for process in self.family(index):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill(self, index: int) -> None:
        self.signal(index, signal.SIGKILL)
        self.agents.pop(index).wait()
        del self.running[index]

    def text(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def entries(self) -> list[Entry]:
        found = IN_A_ROUND.findall(self.text())
        return [Entry(int(n), int(r), int(s), int(p), float(t)) for n, r, s, p, t in found]

    def wait_for_round(self, size: int, above: int = 0) -> list[Entry]:
        """The workers of the first round of `size` ranks with a number above `above`."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            entries = [e for e in self.entries() if e.number > above and e.size == size]
            for number in {e.number for e in entries}:
                inside = [e for e in entries if e.number == number]
                if len(inside) == size:
                    return inside
            time.sleep(0.02)
        raise AssertionError(self.text())


@contextmanager
def started(
    folder: Path,
    words: Callable[[int], list[str]],
    count: int,
    starter: Starter,
) -> Iterator[Nodes]:
    nodes = Nodes(folder, words, starter)
    try:
        for index in range(1, count + 1):
            nodes.start(index)
        yield nodes
    finally:
        for index in list(nodes.running):
            nodes.kill(index)


def leader(port: int, run_id: str = RUN_ID, token: str = RUN_ID) -> int:
    """Index of the node whose coordinator is active."""
    for index in (1, 2, 3):
        with (
            suppress(OSError),
            socket.create_connection((f"127.0.0.{index}", port), timeout=1) as link,
            link.makefile("rwb") as file,
        ):
            theirs = json.loads(file.readline())["challenge"]
            who = Card().text
            mac = proof(token.encode(), run_id, "node", theirs, "n", who)
            words = {"nonce": "n", "mac": mac, "who": who}
            file.write(json.dumps(words).encode() + b"\n" + encode(Peek()))
            file.flush()
            file.readline()
            status = decode(file.readline())
            if isinstance(status, Status) and status.is_active:
                return index
    raise AssertionError("nobody leads")


def rendezvous_words(index: int, port: int, folder: Path) -> list[str]:
    endpoints = ",".join(f"127.0.0.{i}:{port}" for i in (1, 2, 3))
    return [
        "--nnodes=1:3", "--nproc-per-node=1", "--rdzv-backend=bundle", f"--rdzv-id={RUN_ID}",
        f"--rdzv-endpoint={endpoints}", f"--local-addr=127.0.0.{index}",
        f"--rdzv-conf=node_name=n{index},fence_dir={folder / 'fence'},events_dir={folder}",
        "--max-restarts=100", "--monitor-interval=0.05",
    ]  # fmt: skip


def pick(nodes: Nodes, index: int, current: list[Entry]) -> Entry:
    """The entry of the worker of a node."""
    pids = {process.pid for process in nodes.family(index)}
    return next(entry for entry in current if entry.pid in pids)


def rounds_of(events: Path) -> list[int]:
    """Numbers of the rounds that a node has been in."""
    lines = events.read_text().splitlines() if events.exists() else []
    found = [json.loads(line) for line in lines]
    return [int(event["round"]) for event in found if event["event"] == "in a round"]


def wait_for_events(folder: Path, size: int, above: int) -> None:
    """Until `size` agents are in the same round with a number above `above`."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        newest = [max(rounds_of(file), default=0) for file in folder.glob("n*.jsonl")]
        if any(newest.count(number) == size for number in newest if number > above):
            return
        time.sleep(0.01)
    raise AssertionError("no new round")


def test_whatever_dies_under_plain_torchrun_the_others_go_on(
    warm: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port, stop = free_port(), tmp_path / "stop"

    def words(index: int) -> list[str]:
        options = rendezvous_words(index, port, tmp_path)
        return [*TORCHRUN, *options, ACTOR, str(stop)]

    def tell(fault: str, since: float, round_at: float, after: list[Entry]) -> None:
        met_s = max(entry.at for entry in after) - since
        with capsys.disabled():
            print(
                f"\n{fault}: new round after {round_at - since:.2f} s, first all-reduce {met_s:.2f}"
            )

    with started(tmp_path, words, 3, warm.start) as nodes:
        current = nodes.wait_for_round(3)

        def fault(name: str, act: Callable[[], object], size: int) -> None:
            nonlocal current
            before, since = current[0].number, time.monotonic()
            act()
            wait_for_events(tmp_path, size, above=before)
            round_at = time.monotonic()
            current = nodes.wait_for_round(size, above=before)
            tell(name, since, round_at, current)

        lead = leader(port)
        one, other = (index for index in (1, 2, 3) if index != lead)
        worker = pick(nodes, one, current)
        fault("SIGKILL a worker", lambda: os.kill(worker.pid, signal.SIGKILL), 3)
        fault("SIGKILL a node", lambda: nodes.kill(one), 2)
        fault("a node joins", lambda: nodes.start(one), 3)
        fault("SIGSTOP a node", lambda: nodes.signal(other, signal.SIGSTOP), 2)
        fault("SIGCONT it", lambda: nodes.signal(other, signal.SIGCONT), 3)
        fault("SIGKILL the coordinator's node", lambda: nodes.kill(lead), 2)
        assert leader(port) != lead
        fault("SIGKILL the coordinator's node, one is left", lambda: nodes.kill(leader(port)), 1)
        stop.touch()
        for agent in nodes.agents.values():
            assert agent.wait(timeout=LIMIT_S) == 0, nodes.text()
        assert f"node n{one} is lost, it has broken its connection" in nodes.text()
        assert f"node n{other} is lost, it is silent" in nodes.text()
        assert f"node n{one} joins; its ranks start again" in nodes.text()
        assert "the run is over: the workers have finished" in nodes.text()


def test_the_loss_of_the_only_endpoint_is_told_within_seconds(warm: Warm, tmp_path: Path) -> None:
    port = free_port()

    def words(index: int) -> list[str]:
        return [
            *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=bundle",
            f"--rdzv-id={RUN_ID}", f"--rdzv-endpoint=127.0.0.1:{port}",
            f"--local-addr=127.0.0.{index}", "--max-restarts=100", "--monitor-interval=0.05",
            f"--rdzv-conf=node_name=n{index}", ACTOR, str(tmp_path / "stop"),
        ]  # fmt: skip

    with started(tmp_path, words, 2, warm.start) as nodes:
        nodes.wait_for_round(2)
        since = time.monotonic()
        nodes.kill(1)
        assert nodes.agents[2].wait(timeout=10) == 1
        assert time.monotonic() - since < 6
        assert f"keeps the rendezvous at 127.0.0.1:{port} is lost; name more" in nodes.text()


def test_a_node_that_has_finished_is_not_waited_for(warm: Warm, tmp_path: Path) -> None:
    """One node's workers end well, the other's fails behind them: nobody needs another round."""
    port = free_port()
    worker = tmp_path / "worker.py"
    worker.write_text(
        "import os, sys, time\n"
        "if os.environ['NODE'] == '2':\n"
        f"    while not os.path.exists({str(tmp_path / 'done')!r}): time.sleep(0.05)\n"
        "    sys.exit(1)\n"
    )

    def words(index: int) -> list[str]:
        return [
            *TORCHRUN, "--nnodes=2", "--nproc-per-node=1",
            "--rdzv-backend=bundle", f"--rdzv-id={RUN_ID}",
            f"--rdzv-endpoint=127.0.0.1:{port}", f"--local-addr=127.0.0.{index}",
            "--max-restarts=100", "--monitor-interval=0.05",
            f"--rdzv-conf=node_name=n{index},events_dir={tmp_path}", str(worker),
        ]  # fmt: skip

    with started(tmp_path, words, 2, warm.start) as nodes:
        wait_for_events(tmp_path, 2, above=0)
        deadline = time.monotonic() + LIMIT_S
        while '"finished"' not in (tmp_path / "n1.jsonl").read_text():
            assert time.monotonic() < deadline, nodes.text()
            time.sleep(0.05)
        (tmp_path / "done").touch()  # torch's barrier would wait for 300 s
        assert [nodes.agents[i].wait(timeout=LIMIT_S) for i in (1, 2)] == [0, 0], nodes.text()
    events = "".join(file.read_text() for file in tmp_path.glob("n*.jsonl"))
    assert "the workers of node n1 have finished, and node n2 came for another round" in events


TINY = [
    f"--model={Path(__file__).parent.parent / 'ranks' / 'tiny_model.py'}:build",
    "--cut=second", "--shape=1,1", "--image-size=8", "--augment=none",
    "--synthetic-samples=4000", "--batch-size=20", "--microbatch-size=5", "--epochs=200",
    "--devices=cpu", "--slots=2", "--timeout-s=60", "synthetic",
]  # fmt: skip


def wait_for_rounds(nodes: Nodes, count: dict[int, int]) -> None:
    """Until node i has been in count[i] rounds."""
    deadline = time.monotonic() + LIMIT_S
    folder = nodes.folder / "run" / "rendezvous" / "events"
    while any(len(rounds_of(folder / f"n{i}.jsonl")) < n for i, n in count.items()):
        assert time.monotonic() < deadline, nodes.text()
        time.sleep(0.02)


def wait_for_worker(nodes: Nodes, index: int) -> int:
    """Process id of one of a node's ranks: a grandchild, as the fork server is their parent."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        for process in nodes.family(index):
            with suppress(psutil.NoSuchProcess):
                if nodes.running[index].pid not in (process.pid, process.ppid()):
                    return process.pid
        time.sleep(0.02)
    raise AssertionError(nodes.text())


def check_listeners(nodes: Nodes, at_least: int) -> None:
    """Nothing that the nodes started listens elsewhere than at the addresses they were given."""
    deadline = time.monotonic() + LIMIT_S
    while True:
        listeners: dict[int, set[str]] = {}
        for index in nodes.running:
            for process in nodes.family(index):
                with suppress(psutil.NoSuchProcess):
                    for link in process.net_connections("inet"):
                        if link.status == psutil.CONN_LISTEN:
                            listeners.setdefault(process.pid, set()).add(link.laddr.ip)
        assert set().union(*listeners.values()) <= {"127.0.0.1", "127.0.0.2"}
        if len(listeners) >= at_least:
            return
        assert time.monotonic() < deadline, (listeners, nodes.text())
        time.sleep(0.05)


def test_bundlerun_goes_on_without_a_worker_and_without_the_first_node(
    warm: Warm, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    endpoints = ",".join(f"127.0.0.{i}:{port}" for i in (1, 2))

    def words(index: int) -> list[str]:
        return [
            str(BIN / "bundlerun"), "run", "--nnodes=1:2", f"--rdzv-endpoint={endpoints}",
            f"--local-addr=127.0.0.{index}", f"--node-name=n{index}", "--max-restarts=100",
            f"--run-dir={tmp_path / 'run'}", *TINY,
        ]  # fmt: skip

    def tell(fault: str, since: float) -> None:
        with capsys.disabled():
            print(f"\nbundlerun, {fault}: {time.monotonic() - since:.2f} s to the new round")

    with started(tmp_path, words, 2, warm.start) as nodes:
        wait_for_rounds(nodes, {1: 1, 2: 1})
        token = (tmp_path / "run" / "rendezvous" / "token").read_text()
        lead = leader(port, "bundlerun", token)
        other = 3 - lead
        first = set(nodes.family(lead))
        check_listeners(nodes, at_least=6)  # two agents that keep endpoints, four ranks
        worker = wait_for_worker(nodes, other)
        since = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        wait_for_rounds(nodes, {1: 2, 2: 2})
        tell("SIGKILL a worker", since)

        first |= set(nodes.family(lead))
        since = time.monotonic()
        nodes.agents[lead].kill()  # the agent alone: its workers are to end by themselves
        wait_for_rounds(nodes, {other: 3})
        tell("SIGKILL the coordinator's agent", since)
        nodes.agents.pop(lead).wait()
        del nodes.running[lead]
        _, orphans = psutil.wait_procs(first, timeout=5)
        assert not orphans

        nodes.agents[other].terminate()
        assert nodes.agents[other].wait(timeout=LIMIT_S) == EXIT_RESUMABLE
