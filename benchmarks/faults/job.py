"""A small run of several nodes on this machine that faults are injected into, and who watches it.

The nodes are network namespaces with a link each, or, without `hosts`, addresses of the loopback.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import psutil

from benchmarks.cluster.hosts import Hosts
from benchmarks.cluster.programs import Program, Starter
from benchmarks.cluster.waiting import comes_true
from benchmarks.faults.history import Tail
from benchmarks.faults.inject import (
    FOLDER_VARIABLE,
    FREE_STAYS_VARIABLE,
    LINK,
    NODE_VARIABLE,
    Fault,
    Folder,
)
from bundlerun.launcher.run_folder.checkpoints import find_damage, survey
from bundlerun.launcher.run_folder.events import name_of, read_events
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.paths import RunPaths

ROOT = Path(__file__).resolve().parents[2]
PORT = 29400
POLL_S = 0.005
EVENTS_POLL_S = 0.1
"""Reading a long event log takes time that the job's ranks lack."""
CHECKPOINT_STEPS = 20
UNDISTURBED_S = 120
UNDISTURBED_STEP_S = 1.0
"""Longest wait for the run without faults: some 20 ms a step, far more on a busy machine."""
RUN = {
    "model": f"{ROOT / 'tests' / 'ranks' / 'tiny_model.py'}:build",
    "cut": "second",
    "image-size": 8,
    "augment": "none",
    "synthetic-samples": 4000,
    "batch-size": 40,
    "microbatch-size": 5,
    "epochs": 1000,
    "lr": 0.05,
    "precision": "float64",
    "seed": 1,
}
"""What is trained; in double precision, so that another order of sums hardly shows."""
JOB = {
    "shape": "1,1",
    "sync": "local-master",
    "share": "equal",
    "snapshot-steps": 1,
    "checkpoint-steps": CHECKPOINT_STEPS,
    "timeout-s": 60,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOf:
    """One node: its name, its address, how many ranks it holds; its host where there are hosts."""

    name: str
    address: str
    slots: int
    host: int = -1


def loopback_nodes(slots: Sequence[int]) -> list[NodeOf]:
    """Nodes that are addresses of this machine's loopback."""
    return [
        NodeOf(name=f"n{i}", address=f"127.0.0.{i + 1}", slots=count)
        for i, count in enumerate(slots)
    ]


def host_nodes(hosts: Hosts, slots: Sequence[int]) -> list[NodeOf]:
    """Nodes with a network of their own."""
    return [
        NodeOf(name=f"n{i}", address=hosts.address(i), slots=count, host=i)
        for i, count in enumerate(slots)
    ]


def words_of(options: dict[str, object]) -> list[str]:
    """Options as typed, and the data."""
    return [*(f"--{name}={value}" for name, value in options.items()), "synthetic"]


@dataclass
class Job:
    """The agents of a run, started, killed and started again by whoever calls.

    folder: of all that the run leaves. options: in addition to RUN and JOB, as typed.
    environ: in addition to that of this process. starter: of the agents.
    """

    folder: Path
    nodes: Sequence[NodeOf]
    port: int = PORT
    hosts: Hosts | None = None
    options: dict[str, object] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    starter: Starter = subprocess.Popen
    program: str = "benchmarks.faults.agent"
    """The product's own agent, wrapped."""
    work: Mapping[str, object] = field(default_factory=lambda: RUN)
    """What is trained."""
    conf: str = "first_wait=60"
    """Settings of the rendezvous."""
    agents: dict[str, Program] = field(default_factory=dict)
    faults: Folder = field(init=False)
    tail: Tail = field(init=False)

    def __post_init__(self) -> None:
        self.faults = Folder(self.folder / "faults")
        self.tail = Tail(RunPaths(self.run_dir).metrics)

    @property
    def run_dir(self) -> Path:
        """The run folder."""
        return self.folder / "run"

    @property
    def _log(self) -> Path:
        return self.folder / "log"

    def start(self, name: str) -> None:
        """Starts the agent of a node, as its operator would."""
        node = self._node(name)
        nodes = f"1:{len(self.nodes)}"
        ends = ",".join(f"{n.address}:{self.port}" for n in self.nodes)
        words = [
            *self._on(node), sys.executable, "-m", self.program, "run",
            f"--nnodes={nodes}", f"--rdzv-endpoint={ends}", f"--local-addr={node.address}",
            f"--node-name={name}", "--devices=cpu", f"--slots={node.slots}",
            f"--rdzv-conf={self.conf}", f"--run-dir={self.run_dir}",
            f"--snapshot-dir={self.folder / 'memory'}",
            *words_of({**self.work, **JOB, **self.options}),
        ]  # fmt: skip
        environ = (
            os.environ
            # Fault after fault into the same nodes: each is to be in again soon, if it pays or not.
            | {FREE_STAYS_VARIABLE: "1000"}
            | self.environ
            | {
                FOLDER_VARIABLE: str(self.faults.root),
                NODE_VARIABLE: name,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            }
        )
        with self._log.open("ab") as log:
            self.agents[name] = self.starter(
                words, stdout=log, stderr=log, env=environ, cwd=Path.cwd(), start_new_session=True
            )

    def _on(self, node: NodeOf) -> list[str]:
        if self.hosts is None:
            return []
        # The namespace has no name: the descriptor of this process leads to it.
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self.hosts.namespaces[node.host]}"]

    def _node(self, name: str) -> NodeOf:
        return next(node for node in self.nodes if node.name == name)

    def text(self) -> str:
        """What all agents said."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    # --- faults from outside

    def signal_node(self, name: str, number: signal.Signals) -> None:
        """To an agent and all that it started, as nearly at once as can be."""
        with suppress(psutil.NoSuchProcess):
            agent = psutil.Process(self.agents[name].pid)
            # The agent first, so that it cannot react to the end of its ranks.
            for process in [agent, *agent.children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def signal_rank(self, name: str, local_rank: int, number: signal.Signals) -> None:
        """To the newest process of a rank.

        Raises:
            ProcessLookupError: it is gone already.
        """
        os.kill(self.rank_pid(name, local_rank), number)

    def thaw_node(self, name: str) -> None:
        """Resumes every frozen process of a node, whatever has become of its agent.

        A rank that was frozen between its fork and its first look at its parent is no agent's any
        more once that is killed; it ends as soon as it resumes, and only then.
        """
        for pid in self.orphans(name):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def kill_node(self, name: str) -> None:
        """Everything of a node ends at once; the others get no word of it but from its kernel."""
        self.signal_node(name, signal.SIGKILL)
        self.agents.pop(name).wait()

    def kill_agent(self, name: str) -> None:
        """The agent alone."""
        agent = self.agents.pop(name)
        agent.kill()
        agent.wait()

    def link(self, name: str, state: str) -> None:
        """Takes the link of a node "down", or "up" again."""
        subprocess.run([*self._on(self._node(name)), "ip", "link", "set", LINK, state], check=True)

    def reshape(self, name: str, words: str) -> None:
        """What a node may send from now on: the words of `tc` after "tbf", such as "rate ..."."""
        device = ["tc", "qdisc", "replace", "dev", LINK, "root", "tbf"]
        subprocess.run([*self._on(self._node(name)), *device, *words.split()], check=True)

    def rank_pid(self, name: str, local_rank: int) -> int:
        """The process that is this rank now."""
        starts = [
            row["pid"]
            for row in read_events(RunPaths(self.run_dir).events)
            if (name_of(row), row["node"], row.get("local_rank")) == ("starts", name, local_rank)
        ]
        # Each attempt has a row: the last is the process that lives.
        return int(starts[-1])

    def reap(self) -> list[str]:
        """The names of the nodes whose agent has ended; they are no longer in `agents`."""
        ended = [name for name, agent in self.agents.items() if agent.poll() is not None]
        for name in ended:
            del self.agents[name]
        return ended

    # --- looking on

    def wait_until(self, is_so: Callable[[], object], what: str, limit_s: float = 60.0) -> None:
        """Returns once it is so.

        Raises:
            AssertionError: it is not within the limit; with what the agents said last.
        """
        if not comes_true(is_so, limit_s, POLL_S):
            raise AssertionError(
                f"{what}: not within {limit_s} s\n{self.text()[-3000:]}\n{self.last_events()}"
            )

    def last_events(self, count: int = 80) -> str:
        """What happened last on all nodes, a line each."""
        rows = read_events(RunPaths(self.run_dir).events)
        return "\n".join(json.dumps(row) for row in rows[-count:])

    def wait_for_step(self, count: int, limit_s: float = 60.0) -> None:
        """Waits until that many steps are finished."""
        self.wait_until(lambda: self.tail.look() >= count, f"step {count}", limit_s)

    def wait_for_fault(self, fault: Fault, limit_s: float = 60.0) -> float:
        """The monotonic clock as it struck."""

        def has_struck() -> bool:
            self.tail.look()
            return self.faults.struck_at(fault) is not None

        self.wait_until(has_struck, fault.name, limit_s)
        struck = self.faults.struck_at(fault)
        assert struck is not None
        return struck

    def wait_for_ranks(self, count: int, limit_s: float = 60.0) -> None:
        """Waits until the newest round has that many ranks and has finished a step."""
        events = RunPaths(self.run_dir).events

        due = 0.0

        def has_all() -> bool:
            nonlocal due
            self.tail.look()
            # The history at every look, the long event log only now and then.
            if time.monotonic() < due:
                return False
            due = time.monotonic() + EVENTS_POLL_S
            rounds = [r for r in read_events(events) if name_of(r) == "coordinator: round"]
            # Agreed on is not enough: the round also has to finish a step, below.
            names = rounds[-1]["nodes"] if rounds else []
            return sum(n.slots for n in self.nodes if n.name in names) >= count

        self.wait_until(has_all, f"{count} ranks", limit_s)
        self.wait_for_step(self.tail.look() + 1, limit_s)

    def drain(self, limit_s: float = 60.0) -> list[int]:
        """Has the run stop in good order; the agents' exit codes.

        Raises:
            AssertionError: it has not within the limit; with what the agents said last.
        """
        agents = list(self.agents.values())
        # One node that is told is enough: it tells the others.
        agents[0].send_signal(signal.SIGUSR1)
        # In `all`, a list: so every agent is polled, and none stays a zombie.
        self.wait_until(
            lambda: all([agent.poll() is not None for agent in agents]), "the end", limit_s
        )
        codes = [agent.wait() for agent in agents]
        self.agents.clear()
        self.tail.look()
        return codes

    # --- what must hold after a run

    def orphans(self, name: str = "") -> list[int]:
        """Processes of this job that are left, or of one node: by marks in their environment."""
        marks = {f"{FOLDER_VARIABLE}={self.faults.root}".encode()}
        if name:
            marks.add(f"{NODE_VARIABLE}={name}".encode())
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(OSError):
                    # Forks inherit it; orphans have no parent that would lead to them.
                    if marks <= set((folder / "environ").read_bytes().split(b"\0")):
                        found.append(int(folder.name))
        return found

    def forget_memory(self, name: str) -> None:
        """Removes the snapshots of a node that is down, as a machine that was replaced has none."""
        for folder in (self.folder / "memory").glob(f"*-{name}"):
            shutil.rmtree(folder)

    def leftovers(self) -> list[str]:
        """What a run that has ended in good order should have removed."""
        memory = self.folder / "memory"
        return sorted(path.name for path in memory.iterdir()) if memory.exists() else []

    def damage(self) -> list[str]:
        """What is wrong with the checkpoints."""
        surveyed = survey(RunPaths(self.run_dir))
        found = [(checkpoint, find_damage(checkpoint)) for checkpoint in surveyed.found]
        # The run goes on meanwhile, and removes the older ones: such a one was not damaged.
        there = survey(RunPaths(self.run_dir)).found
        damaged = [text for checkpoint, text in found if text and checkpoint in there]
        return [*map(str, surveyed.broken), *damaged]

    def end(self) -> None:
        """Ends what is left, by its mark."""
        for pid in self.orphans():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for agent in self.agents.values():
            agent.wait()
        self.agents.clear()


@contextmanager
def opened(job: Job) -> Iterator[Job]:
    """Starts all nodes; whatever is left of them ends with the `with`, or at a SIGTERM in it."""
    # As an exception, so that `finally` runs.
    before = signal.signal(signal.SIGTERM, _unwind)
    try:
        for node in job.nodes:
            job.start(node.name)
        yield job
    finally:
        job.end()
        signal.signal(signal.SIGTERM, before)


def _unwind(number: int, _: object) -> NoReturn:
    """Agents have sessions of their own: without this, a `timeout` would leave them running."""
    raise SystemExit(128 + number)


def undisturbed(
    folder: Path,
    num_steps: int,
    options: dict[str, object] | None = None,
    starter: Starter = subprocess.Popen,
) -> Path:
    """The run folder of the same training in one process, unsplit, without any fault.

    Raises:
        AssertionError: it failed, or took too long.
    """
    run_dir = folder / "undisturbed"
    # More than one thread would spin at each operation while other processes hold the cores.
    own = {**RUN, "shape": "1", "cut": "", "max-steps": num_steps, "snapshot": "off", "threads": 1}
    words = words_of({**own, **(options or {}), "run-dir": run_dir})
    said = folder / "undisturbed.log"
    with said.open("wb") as log:
        program = starter(
            [sys.executable, "-m", "bundlerun.workers.train", *words],
            stdout=log,
            stderr=log,
            env=os.environ,
            cwd=ROOT,
            start_new_session=True,
        )
    try:
        code = program.wait(UNDISTURBED_S + num_steps * UNDISTURBED_STEP_S)
    finally:
        program.kill()
    assert code == 0, said.read_text(errors="replace")
    return run_dir


def losses(run_dir: Path) -> dict[int, float]:
    """The loss of each step, as the history says it in the end."""
    rows = read_rows(RunPaths(run_dir).metrics)
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "step"}
