"""What a group of gloo takes, as the number of its members grows."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch._C._distributed_c10d import HashStore

from benchmarks.results.record import Options, print_table
from bundlerun.workers.rank.comm import Group, Network

CLAIM = "how many keys and connections a group of gloo takes, and how long"
MEMBERS = (2, 4, 8, 16, 32, 64)
NUM_SUMS = 20
LIMIT_S = 120.0


def run(options: Options) -> None:
    """Each size; members are threads of this process."""
    rows = [group_of(count) for count in MEMBERS]
    print_table(list(rows[0]), [list(row.values()) for row in rows])
    options.record("groups", {"sizes": rows})


def group_of(members: int) -> dict[str, object]:
    """Keys in its store, open files of a member, seconds to make it; and to sum four bytes."""
    store, barrier = HashStore(), threading.Barrier(members + 1)

    def member(rank: int) -> float:
        network = Network(
            store=store, rank=rank, backend="gloo", timeout_s=LIMIT_S, address="127.0.0.1"
        )
        barrier.wait(LIMIT_S)  # [1] all are about to make it
        group = Group(network, "all", tuple(range(members)), "gloo")
        barrier.wait(LIMIT_S)  # [2] all have it
        value = torch.ones(1)
        barrier.wait(LIMIT_S)  # [3] what it takes has been counted
        group.all_reduce(value).wait()
        begin = time.monotonic()
        for _ in range(NUM_SUMS):
            group.all_reduce(value).wait()
        took_s = (time.monotonic() - begin) / NUM_SUMS
        barrier.wait(LIMIT_S)  # [4] nobody needs it any more
        group.close()
        return took_s

    with ThreadPoolExecutor(members) as pool:
        done = [pool.submit(member, rank) for rank in range(members)]
        files = _open_files()
        barrier.wait(LIMIT_S)
        begin = time.monotonic()
        barrier.wait(LIMIT_S)
        took_s = time.monotonic() - begin
        ends, keys = _open_files() - files, int(store.num_keys())
        barrier.wait(LIMIT_S)
        barrier.wait(LIMIT_S)
        sums = [each.result(LIMIT_S) for each in done]
    return {
        "members": members,
        "keys": keys,
        "open files each": ends / members,
        "seconds": took_s,
        "sum of 4 bytes ms": 1000 * max(sums),
    }


def _open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
