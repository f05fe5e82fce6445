"""Ranks on hosts: forked from this process, which has torch, so that none imports it again."""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore, PrefixStore, Store

from benchmarks.cluster.hosts import DEVICE, Counters, Hosts, read_counters
from bundlerun.launcher.process import die_with_parent
from bundlerun.workers.rank.comm import Network
from bundlerun.workers.rank.env import RankEnv

TIMEOUT_S = 120.0
"""Longest wait of one rank for another."""
LOOPBACK = "127.0.0.1"
_PR_SET_TIMERSLACK = 29
_POLL_S = 0.01


class Barrier(Protocol):
    """Where all ranks meet, through memory: it sends nothing."""

    def wait(self, timeout: float | None = None) -> int:
        """Returns once all are here."""


class Running(NamedTuple):
    """Steps of which each one leaves something to the next: timed one after the other.

    One before them is not timed, as it finds nothing left.

    Args:
        step: one of them.
        settle: ends what the last one has left.
        num_steps: that are timed.
    """

    step: Callable[[], object]
    settle: Callable[[], object]
    num_steps: int = 5


Act = Callable[[], object] | Running
"""What is timed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a forked rank knows; it is on its host already.

    Args:
        env: what torchrun would tell it.
        store: shared by all ranks, a file.
        barrier: of all ranks.
    """

    env: RankEnv
    store: Store
    barrier: Barrier

    @property
    def is_first_of_host(self) -> bool:
        """Whether this rank reads its host's counters."""
        return self.env.local_rank == 0

    def network(self, name: str) -> Network:
        """How this rank reaches others in `workers`; a name per user."""
        return Network(
            store=PrefixStore(name, self.store),
            rank=self.env.rank,
            backend="gloo",
            timeout_s=TIMEOUT_S,
            address=self.env.local_addr,
        )

    def join_torch(self) -> None:
        """Makes torch's default process group; collective."""
        dist.init_process_group(
            "gloo",
            store=PrefixStore("torch", self.store),
            rank=self.env.rank,
            world_size=self.env.world_size,
            timeout=timedelta(seconds=TIMEOUT_S),
        )

    def timed(self, act: Act) -> dict[str, Any]:
        """Times `act`, which all ranks do at once; `merged` reads the answer.

        Clocks are those of the one machine, so the ranks' times can be compared.

        Args:
            act: one step.
        """
        steps, settle = (act.num_steps, act.settle) if isinstance(act, Running) else (1, None)
        step = act.step if isinstance(act, Running) else act
        # Before the barrier: reading starts a program, which must not delay the timed part.
        before = read_counters() if self.is_first_of_host else None
        self.barrier.wait(TIMEOUT_S)
        if settle is not None:
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        # At once; the barrier after it keeps the counters from being read while others still send.
        end = time.perf_counter()
        if settle is not None:
            settle()
        self.barrier.wait(TIMEOUT_S)
        passed = read_counters().since(before) if before is not None else None
        sent = steps if settle is None else steps + 1
        return {"start": start, "end": end, "counters": passed, "steps": steps, "sent": sent}

    def timed_in_turn(self, acts: Mapping[str, Act], num_rounds: int) -> list[dict[str, Any]]:
        """Times each of the acts once a round; `timings_by_scheme` reads the answer."""
        rounds = range(num_rounds)
        return [{"scheme": name, **self.timed(act)} for _ in rounds for name, act in acts.items()]


class Timing:
    """What all ranks together say of one timed act.

    Args:
        answers: of `Seat.timed`, one per rank.
    """

    def __init__(self, answers: Sequence[dict[str, Any]]) -> None:
        # From the first start to the last end: the act is over when the slowest rank is done.
        took_s: float = max(a["end"] for a in answers) - min(a["start"] for a in answers)
        self.seconds = took_s / answers[0].get("steps", 1)
        """Of a step."""
        self._num_sent = int(answers[0].get("sent", 1))
        self.note = str(answers[0].get("note", ""))
        self.counters = [Counters(*a["counters"]) for a in answers if a["counters"] is not None]

    @property
    def sent_bytes(self) -> int:
        """In a step, of the host that sent most, as its device counts."""
        return max(c.sent_bytes for c in self.counters) // self._num_sent

    @property
    def wire_bytes(self) -> int:
        """In a step, of the host that sent most, with every frame's header."""
        return max(c.wire_bytes for c in self.counters) // self._num_sent

    @property
    def num_dropped(self) -> int:
        """Packets that a full queue has lost."""
        return sum(c.num_dropped for c in self.counters)


def timings_by_scheme(answers: Sequence[Sequence[dict[str, Any]]]) -> dict[str, list[Timing]]:
    """The timings of each scheme, in the order in which they were measured.

    Args:
        answers: per rank what `Seat.timed` gave, time after time, with the name as "scheme".
    """
    timings: dict[str, list[Timing]] = {}
    for same in zip(*answers, strict=True):
        timings.setdefault(same[0]["scheme"], []).append(Timing(same))
    return timings


def timings_on(
    hosts: Hosts, ranks_per_host: int, main: Callable[[Seat], object]
) -> dict[str, list[Timing]]:
    """What `main` measures on as many ranks of every host, by scheme."""
    return timings_by_scheme(run_ranks(hosts, (ranks_per_host,) * hosts.num_hosts, main))


def run_ranks(
    hosts: Hosts,
    per_host: Sequence[int],
    main: Callable[[Seat], object],
    *,
    timeout_s: float = 600.0,
) -> list[Any]:
    """What `main` returned on every rank, through JSON.

    Args:
        hosts: where they run.
        per_host: ranks of each host.
        main: what a rank does.
        timeout_s: longest wait for all of it, seconds.

    Raises:
        RuntimeError: a rank failed, or is not done in time; none is left.
    """
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        # In memory that the forks share: meeting there puts nothing on the measured links.
        barrier = multiprocessing.get_context("fork").Barrier(sum(per_host))
        pids: dict[int, int] = {}
        try:
            for env in rank_envs(per_host, [hosts.address(n) for n in range(len(per_host))]):
                pids[_fork(hosts, env, barrier, main, Path(folder))] = env.rank
            _wait(pids, Path(folder), time.monotonic() + timeout_s)
        finally:
            for pid in pids:
                # Only those that `_wait` has not taken out: on an error none is left behind.
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        answers = [Path(folder) / f"rank{rank}.json" for rank in range(sum(per_host))]
        return [json.loads(path.read_text()) for path in answers]


def rank_envs(per_host: Sequence[int], addresses: Sequence[str] = ()) -> list[RankEnv]:
    """What torchrun would tell the ranks of hosts with these addresses, or all on this machine."""
    addresses = addresses or [LOOPBACK] * len(per_host)
    firsts = accumulate(per_host, initial=0)
    return [
        RankEnv(
            rank=first + local_rank,
            world_size=sum(per_host),
            local_rank=local_rank,
            local_world_size=count,
            node=node,
            num_nodes=len(per_host),
            attempt=0,
            node_name=f"node{node}",
            local_addr=addresses[node],
            master_addr=addresses[0],
            master_port=0,
            is_launched=True,
        )
        for node, (first, count) in enumerate(zip(firsts, per_host, strict=False))
        for local_rank in range(count)
    ]


def launcher_variables(env: RankEnv) -> dict[str, str]:
    """The variables by which a launcher would tell a rank its place."""
    numbers = {
        "RANK": env.rank,
        "WORLD_SIZE": env.world_size,
        "LOCAL_RANK": env.local_rank,
        "LOCAL_WORLD_SIZE": env.local_world_size,
        "GROUP_RANK": env.node,
        "GROUP_WORLD_SIZE": env.num_nodes,
        "MASTER_PORT": env.master_port,
    }
    return {name: str(number) for name, number in numbers.items()} | {
        "MASTER_ADDR": env.master_addr,
        "BUNDLERUN_NODE_NAME": env.node_name,
    }


def _fork(
    hosts: Hosts, env: RankEnv, barrier: Barrier, main: Callable[[Seat], object], folder: Path
) -> int:
    # What is in the buffers would be printed again by the child.
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        _settle(parent)
        # Before any socket is opened: those belong to the namespace they were made in.
        hosts.enter(env.node)
        store = FileStore(str(folder / "store"), env.world_size)
        store.set_timeout(timedelta(seconds=TIMEOUT_S))
        answer = main(Seat(env=env, store=store, barrier=barrier))
        (folder / f"rank{env.rank}.json").write_text(json.dumps(answer))
        code = 0
    except BaseException:
        (folder / f"rank{env.rank}.txt").write_text(traceback.format_exc())
    finally:
        # Not `sys.exit`: the child must not unwind into the caller's code, nor run its handlers.
        os._exit(code)


def _settle(parent: int) -> None:
    """A rank dies with its parent, sleeps exactly, has one thread, and talks on its host's link."""
    die_with_parent(parent)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1)
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = DEVICE


def _wait(pids: dict[int, int], folder: Path, deadline: float) -> None:
    """Returns when all have ended well; takes those that have ended out of `pids`."""
    while pids:
        for pid in list(pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if not done:
                continue
            rank = pids.pop(pid)
            # The first that fails ends the wait: the others would hang until their timeout.
            if status != 0:
                trace = folder / f"rank{rank}.txt"
                what = trace.read_text() if trace.exists() else f"wait status {status}"
                raise RuntimeError(f"rank {rank}: {what}")
        if pids and time.monotonic() > deadline:
            raise RuntimeError(f"ranks {sorted(pids.values())} are not done in time")
        time.sleep(_POLL_S)
