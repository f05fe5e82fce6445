"""NCCL with one rank: every operation, and a sync of gradients through it.

One rank sends nothing, so this shows what is asked of NCCL and what that costs, not how fast it is.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore
from torch.nn.functional import cross_entropy

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.profiled import counts_of
from benchmarks.gpu.trained import load_of
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Place, Topology
from bundlerun.workers.device import accelerator
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.groups import Members
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.sync.flat import Flat, replicas
from bundlerun.workers.sync.gradient_sync import GradientSync, SyncSettings
from bundlerun.workers.sync.schemes import Ways

_TIMEOUT_S = 30.0
_DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.uint8)
_NUM_EXTRA = 8
_MB = 1e6
_MOST_US = 60


def run(bench: Bench) -> None:
    """The operations, then the sync with small and with large buckets."""
    device = accelerator.own_device(0)
    backend = "nccl"
    made = Network(
        store=HashStore(),
        rank=0,
        backend=backend,
        timeout_s=_TIMEOUT_S,
        address="127.0.0.1",
        device=device,
    )
    group = Group(made, "operations", (0,), backend)
    wrong = [str(dtype) for dtype in _DTYPES if not _is_right(group, dtype)]
    bench.said.holds(
        f"{backend}: all operations, {len(_DTYPES)} dtypes",
        not wrong,
        ", ".join(wrong) or "right",
        "right",
    )
    value = {"a": [1, "b"]}
    found = group.all_gather_json(value)
    bench.said.holds(f"{backend}: JSON", found == [value], str(found), str([value]))
    for mb in (1.0, 25.0):
        _sync(bench, made, backend, mb)
    group.close()
    bench.said.note(f"{backend}: closed", "without an error")


def _is_right(group: Group, dtype: torch.dtype) -> bool:
    values = torch.arange(1000, device=group.device).to(dtype)
    acts: tuple[Callable[[Tensor], Any], ...] = (group.all_reduce, group.reduce, group.broadcast)
    for act in acts:
        found = values.clone()
        act(found).wait()
        if not torch.equal(found, values):
            return False
    (gathered,) = group.all_gather(values)
    return torch.equal(gathered, values)


class _OneRank(Flat):
    """A sum over one rank, which otherwise nothing is sent for."""

    def __init__(self, holders: Holders, place: Place) -> None:
        super().__init__(holders, place)
        self.members = (replicas(holders),)


def _sync(bench: Bench, network: Network, backend: str, mb: float) -> None:
    load = load_of(bench, microbatch=8)
    model = load.model().to(network.device).train()
    (images, targets), *_ = load.batches(network.device)
    wanted = _gradients(model, images, targets)
    topology = Topology(Shape((1,)), (1,))
    place = topology.places[0]
    holders = Holders.of(topology, [0])
    members: Members = replicas(holders)
    sync = GradientSync(
        [list(model.parameters())],
        num_extra=_NUM_EXTRA,
        ways=Ways((_OneRank(holders, place),), members, is_serial=backend == "nccl"),
        groups={members: Group(network, f"sync{mb}", members.ranks, backend)},
        device=network.device,
        settings=SyncSettings(bucket_bytes=int(mb * _MB), timeout_s=_TIMEOUT_S),
        meters=Meters.of(network.device),
    )

    def step(compute: bool = True) -> None:
        sync.start_step()
        sync.arm(0)
        if compute:
            cross_entropy(model(images), targets).backward()
        sync.finish()
        sync.read(sync.extra)

    with closing(sync):
        step()
        what = f"{backend}, buckets of {mb:g} MB"
        off = max(_off(p.grad, wanted[name]) for name, p in model.named_parameters())
        # A GPU need not add up twice in one order.
        bench.said.at_most(f"{what}: gradients, relative", off, bench.sized(1e-3, 0.0))
        num_buckets = len({id(bucket) for bucket in sync.__dict__["_buckets"]})
        times = [_thread_us(bench, partial(step, False)) / num_buckets for _ in range(10)]
        bench.on_gpu.at_most(f"{what}: of this thread per bucket", median(times), _MOST_US, "us")
        bench.said.at_most(f"{what}: waits per step", counts_of(bench, step).waits, 2)


def _gradients(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Of one backward, without a sync."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    cross_entropy(model(images), targets).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    model.load_state_dict(state)
    return found


def _off(found: Tensor | None, wanted: Tensor) -> float:
    """How far one is from the other, relative to the largest number."""
    if found is None:
        return math.inf
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def _thread_us(bench: Bench, act: Callable[[], object]) -> float:
    """What `act` takes of this thread; others issue what it has asked for."""
    bench.drain()
    start = time.thread_time()
    act()
    return 1e6 * (time.thread_time() - start)
