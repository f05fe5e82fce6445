from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore

from benchmarks.cluster.forked import rank_envs
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.rendezvous.round_store import NUMBER_KEY
from bundlerun.workers.rank.arrival.round_store import forget_dump_signal, own_part
from bundlerun.workers.rank.env import RankEnv

LIMIT_S = 20.0


def env(rank: int, world_size: int, *, has_agents_store: bool = True) -> RankEnv:
    return replace(rank_envs((world_size,))[rank], has_agents_store=has_agents_store)


@pytest.fixture
def kept() -> TCPStore:
    """What torchrun's agent keeps over all starts of its workers."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    store.set_timeout(timedelta(seconds=LIMIT_S))
    return store


def come(pool: ThreadPoolExecutor, store: TCPStore, rank: int, size: int) -> Future[Store]:
    client = TCPStore("127.0.0.1", store.port, is_master=False, wait_for_workers=False)
    client.set_timeout(timedelta(seconds=LIMIT_S))
    return pool.submit(own_part, client, env(rank, size), LIMIT_S)


def test_each_start_of_the_ranks_has_a_part_of_its_own_whoever_comes_first(
    kept: TCPStore,
) -> None:
    with ThreadPoolExecutor(8) as pool:
        for start, order in enumerate([(0, 1, 2), (2, 1, 0), (1, 0, 2)]):
            found = {rank: come(pool, kept, rank, 3) for rank in order}
            parts = {rank: future.result(LIMIT_S) for rank, future in found.items()}
            assert not parts[1].check(["word"])  # of a start before
            parts[0].set("word", str(start))
            assert [parts[rank].get("word") for rank in (1, 2)] == [str(start).encode()] * 2


def test_a_start_that_broke_off_in_its_meeting_misleads_nobody(kept: TCPStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        kept.set_timeout(timedelta(seconds=0.2))
        with pytest.raises(NodeError, match="not all of the 3 ranks"):
            own_part(kept, env(0, 3), LIMIT_S)  # as a rank 0 that was killed while it waited
        kept.set_timeout(timedelta(seconds=LIMIT_S))
        early = come(pool, kept, 2, 3)  # finds only the round that broke off
        kept.wait(["bundlerun/1/hello/2"], timedelta(seconds=LIMIT_S))
        rest = [come(pool, kept, rank, 3) for rank in (1, 0)]
        part = early.result(LIMIT_S)
        rest[1].result(LIMIT_S).set("word", "new")
        assert part.get("word") == b"new"
        assert rest[0].result(LIMIT_S).get("word") == b"new"


def test_a_rank_whose_rank_0_does_not_come_says_so(kept: TCPStore) -> None:
    with pytest.raises(NodeError, match="rank 0 of this start did not answer"):
        own_part(kept, env(1, 2), 0.05)


def test_a_fresh_store_needs_no_meeting(kept: TCPStore) -> None:
    own_part(kept, env(1, 2, has_agents_store=False), 0.05).set("word", "a")
    kept.set(NUMBER_KEY, "7")
    assert own_part(kept, env(1, 2), 0.05).get("word") == b"a"


def test_a_signal_of_torch_s_to_an_earlier_start_is_taken_back() -> None:
    below = HashStore()
    below.set("exception_dump", "rank 3")
    below.set("other", "stays")
    forget_dump_signal(PrefixStore("attempt_1", PrefixStore("worker", below)))
    assert not below.check(["exception_dump"])
    assert below.get("other") == b"stays"
    forget_dump_signal(below)  # there is none
