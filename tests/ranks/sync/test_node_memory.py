"""Memory shared by the ranks of a node: seen by all, gone with them, never waited for in vain."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest
from torch.distributed import Store

from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.node_memory import NodeMemory
from tests.ranks.harness import outcomes, run_ranks

NUM_BYTES = 4096


def group_of(env: RankEnv, store: Store, timeout_s: float = 20.0) -> Group:
    network = Network(
        store=store, rank=env.rank, backend="gloo", timeout_s=timeout_s, address="127.0.0.1"
    )
    return Group(network, "node", range(env.world_size), "gloo")


def connected(env: RankEnv, store: Store, **options: int) -> NodeMemory:
    memory = NodeMemory.connect(group_of(env, store), NUM_BYTES, **options)
    assert memory is not None
    return memory


def test_what_one_writes_before_it_rings_all_others_read(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        memory = connected(env, store)
        assert not memory.own.any()
        peers = [rank for rank in range(3) if rank != env.rank]
        for turn in range(50):
            memory.own.fill_(turn + env.rank)
            for peer in peers:
                memory.ring(peer)
            for peer in peers:
                memory.wait(peer)
                assert (memory.memory[peer] == turn + peer).all()
            for peer in peers:  # read before it is written again
                memory.ring(peer)
            for peer in peers:
                memory.wait(peer)
        memory.close()

    run_ranks((3,), main, tmp_path)


def test_channels_do_not_answer_for_each_other(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        group = group_of(env, store, 0.3 if env.rank else 20.0)
        memory = NodeMemory.connect(group, NUM_BYTES, num_channels=2)
        assert memory is not None
        if env.rank == 0:
            memory.ring(1, channel=1)
            memory.wait(1)
        else:
            with pytest.raises(RuntimeError, match=r"did not answer in 0\.3 s"):
                memory.wait(0, channel=0)
            memory.wait(0, channel=1)
            memory.ring(0)

    run_ranks((2,), main, tmp_path)


def test_a_peer_that_is_killed_ends_the_wait_at_once(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        memory = connected(env, store)
        if env.rank == 0:
            memory.wait(1)
            os.kill(os.getpid(), signal.SIGKILL)
        memory.ring(0)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match="rank 0 on this node is gone"):
            memory.wait(0)
        # Not a speed test: the group's timeout is 20 s.
        assert time.monotonic() - start < 10

        def ring_until(deadline: float) -> None:
            """A process that ends closes one pipe after the other."""
            while time.monotonic() < deadline:
                memory.ring(0)

        with pytest.raises(RuntimeError, match="rank 0 on this node is gone"):
            ring_until(start + 10)

    assert list(outcomes((2,), main, tmp_path, 30)) == [0]


def test_where_one_cannot_share_all_go_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def main(env: RankEnv, store: Store) -> None:
        group = group_of(env, store)
        if env.rank == 1:
            monkeypatch.setattr(
                "bundlerun.workers.rank.node_memory.this_machine", lambda: "another machine"
            )
        before = set(Path("/proc/self/fd").iterdir())
        assert NodeMemory.connect(group, NUM_BYTES) is None
        assert set(Path("/proc/self/fd").iterdir()) == before

    run_ranks((2,), main, tmp_path)


def test_where_the_system_forbids_it_to_one_all_go_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(_: str) -> int:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def main(env: RankEnv, store: Store) -> None:
        group = group_of(env, store)
        if env.rank == 1:
            monkeypatch.setattr(os, "memfd_create", forbidden)
        assert NodeMemory.connect(group, NUM_BYTES) is None

    run_ranks((2,), main, tmp_path)


def test_more_memory_than_there_is_is_refused_by_all(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        size = NUM_BYTES if env.rank else 1 << 50
        assert NodeMemory.connect(group_of(env, store), size) is None

    run_ranks((2,), main, tmp_path)
