"""Ranks on the stand-in: each has a device of its own, and communicators as NCCL makes them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from torch.distributed import PrefixStore, Store

from bundlerun.workers.device import accelerator, host_memory
from bundlerun.workers.rank import comm
from bundlerun.workers.rank.env import RankEnv
from tests.standin.communicator import Communicator, Process
from tests.standin.device import Device
from tests.standin.install import install

RankMain = Callable[[RankEnv, Store], None]


def attach(device: Device, *, may_share: bool = False) -> Process:
    """Lets this process make the stand-in's communicators where it would make NCCL's."""
    process = Process(device, may_share=may_share)

    def make(
        store: Store, index: int, size: int, timeout: timedelta, *, tune: Callable[[Any], None]
    ) -> Communicator:
        options = SimpleNamespace(config=SimpleNamespace(max_ctas=-1))
        tune(options)
        gloos = [
            comm._make_gloo(PrefixStore(part, store), index, size, timeout, "127.0.0.1")
            for part in ("work", "notes")
        ]
        # Only links are told to use little of a GPU.
        is_link = options.config.max_ctas > 0
        return Communicator(
            process, (gloos[0], gloos[1]), options.group_name, (index, size), is_link=is_link
        )

    comm.make_nccl = make
    accelerator.has_nccl = lambda device: True
    return process


def on_standin(
    main: Callable[[RankEnv, Store, Device], None], *, seed: int | None = None
) -> RankMain:
    """`main` of a rank on the stand-in, which may have no faults; for ranks that were forked."""
    # Shapes are told by code that torch loads at its first use: once, before ranks are forked.
    importlib.import_module("torch._dynamo")

    def on_device(env: RankEnv, store: Store) -> None:
        device = install(seed=seed, in_one_thread=True)
        # The process that this one was forked from may have asked, without the stand-in.
        host_memory.can_pin.cache_clear()
        attach(device)
        try:
            main(env, store, device)
        finally:
            print(*device.record.faults, sep="\n", file=sys.stderr)
        device.record.check()

    return on_device
