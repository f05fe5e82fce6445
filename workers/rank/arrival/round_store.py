"""A part of torchrun's store that belongs to one start of the ranks.

torch's own rendezvous keeps one store over all restarts of the workers, with the keys of all of
them. Nothing in the environment tells two starts apart: the restart count stays when a node comes
or goes, and differs between agents. So the ranks agree on a number that no start before has:

    rank 0     [1] r = one more than any before       rounds (a counter)
               [2] waits for a word of every rank     r/hello/1 ... r/hello/N
               [3] answers with all of them           r/go
    rank i     makes a word that nobody else has, [4] writes it in the newest r, and [5] looks for
               its own word in the answer; until then it looks whether there is a newer r

An answer of an earlier start has other words, so a rank that comes before its rank 0 is not misled.
"""

from __future__ import annotations

import json
import os
import time

from torch._C._distributed_c10d import PrefixStore, Store

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.rendezvous.round_store import NUMBER_KEY
from bundlerun.workers.rank.env import RankEnv

OWN_PART = "bundlerun"
"""What the keys of our ranks begin with."""
_ROUNDS = "rounds"
_DUMP_SIGNAL = "exception_dump"
_POLL_S = (0.005, 0.25)
"""Pause between two looks of a rank, seconds: the first one, and the longest."""


def own_part(store: Store, env: RankEnv, timeout_s: float) -> Store:
    """The part of `store` that this start of the ranks has for itself.

    Collective: every rank of the round.

    Raises:
        NodeError: not all ranks came in time.
    """
    ours = PrefixStore(OWN_PART, store)
    if not env.has_agents_store or store.check([NUMBER_KEY]):
        return ours  # it is new: rank 0 has just made it, or our rendezvous has
    if env.rank != 0:
        return PrefixStore(f"round{_follow(ours, env.rank, timeout_s)}", ours)
    # Before the others go on, and make groups of NCCL.
    forget_dump_signal(store)
    return PrefixStore(f"round{_lead(ours, env.world_size)}", ours)


def forget_dump_signal(store: Store) -> None:
    """Takes back what torch's watch over NCCL has told the ranks of an earlier start.

    It tells them to write their flight recorders, by a key of the store that is underneath all
    prefixes; those of a new start would write theirs too, and be ended some minutes later
    (`ProcessGroupNCCL.cpp`, its heartbeat monitor).
    """
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    store.delete_key(_DUMP_SIGNAL)


def _lead(store: Store, world_size: int) -> int:
    # [1]
    number = store.add(_ROUNDS, 1)
    others = range(1, world_size)
    # [2]
    try:
        words = [store.get(f"{number}/hello/{rank}").decode() for rank in others]
    except RuntimeError as exc:
        raise NodeError(f"not all of the {world_size} ranks of this start came: {exc}") from exc
    # [3]
    store.set(f"{number}/go", json.dumps(words))
    return number


def _follow(store: Store, rank: int, timeout_s: float) -> int:
    word, said_in, pause_s = os.urandom(8).hex(), 0, _POLL_S[0]
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # [4] Adding nothing reads the counter, also where it is not there yet.
        number = store.add(_ROUNDS, 0)
        if number > said_in:
            store.set(f"{number}/hello/{rank}", word)
            said_in = number
        # [5] Without another word in it: that answer was to an earlier start.
        answer = f"{number}/go"
        if store.check([answer]) and json.loads(store.get(answer))[rank - 1] == word:
            return number
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _POLL_S[1])
    raise NodeError(
        f"rank 0 of this start did not answer within --timeout-s {timeout_s:g}; see its log"
    )
