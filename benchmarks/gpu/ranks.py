"""A few ranks on this machine, forked before any of them has started the GPU."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

from torch._C._distributed_c10d import FileStore

from benchmarks.cluster.forked import LOOPBACK, Seat, rank_envs
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.forked import LIMIT_S, Fork
from bundlerun.workers.device import accelerator
from bundlerun.workers.rank.comm import Network


def run_ranks(bench: Bench, name: str, num_ranks: int, main: Callable[[Seat], object]) -> list[Any]:
    """What `main` returned on each rank, through JSON.

    Args:
        bench: gives a folder.
        name: of these ranks, new.
        num_ranks: all of one node.
        main: what a rank does.

    Raises:
        RuntimeError: a rank gave no answer; the log says why.
    """
    # The stand-in works out shapes by code that torch loads late: once, not by each rank.
    if bench.stand_in is not None:
        importlib.import_module("torch._dynamo")
    barrier = multiprocessing.get_context("fork").Barrier(num_ranks)
    envs = rank_envs((num_ranks,))
    store = str(bench.disk / f"{name}.store")

    def work(rank: int) -> object:
        found = FileStore(store, num_ranks)
        found.set_timeout(timedelta(seconds=LIMIT_S))
        answer = main(Seat(env=envs[rank], store=found, barrier=barrier))
        bench.check()
        return answer

    ranks = [Fork(partial(work, rank)) for rank in range(num_ranks)]
    try:
        return [rank.answer() for rank in ranks]
    finally:
        for rank in ranks:
            rank.forget()


def network(seat: Seat, backend: str, *, tries_ipc: bool = False) -> Network:
    """How a rank reaches the others; starts its GPU."""
    return Network(
        store=seat.store,
        rank=seat.env.rank,
        backend=backend,
        timeout_s=LIMIT_S,
        address=LOOPBACK,
        device=accelerator.own_device(seat.env.local_rank),
        tries_ipc=tries_ipc,
    )
