"""What is said to NCCL, with a stand-in that takes only what NCCL takes; gloo does the work."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, is_nccl_available

from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT
from bundlerun.launcher.layout.holders import Holders
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank import comm
from bundlerun.workers.rank.comm import Group, Network
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.groups import make_groups
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.legs import Chain
from bundlerun.workers.sync.schemes import SCHEMES
from tests.ranks.harness import run_ranks

NODES = (2, 1)


class OnGpu(Tensor):
    """Stands for a tensor on a GPU, and so does all that is made of it."""


class StandIn:
    """A communicator that refuses tensors of the CPU, as ProcessGroupNCCL does."""

    begun: list[tuple[str, int]] = []  # noqa: RUF012 # by this rank, over all communicators
    num_closed = 0

    def __init__(self, gloo: Any) -> None:
        self._gloo = gloo

    def __getattr__(self, name: str) -> Any:
        def begin(tensors: list[Any], *rest: Any) -> Any:
            StandIn.begun.append((name, threading.get_ident()))
            return getattr(self._gloo, name)(plain(tensors), *map(plain, rest))

        return begin

    def shutdown(self) -> None:
        StandIn.num_closed += 1


def plain(value: Any) -> Any:
    """For gloo; raises ValueError for a tensor of the CPU."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, Tensor):
        if not isinstance(value, OnGpu):
            raise ValueError("Tensors must be CUDA and dense")
        return value.as_subclass(Tensor)
    return value


@pytest.fixture
def network_of(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(
        store: Store, index: int, size: int, limit: timedelta, *, tune: Callable[[Any], None]
    ) -> StandIn:
        return StandIn(comm._make_gloo(store, index, size, limit, "127.0.0.1"))

    monkeypatch.setattr(comm, "make_nccl", make)
    monkeypatch.setattr(door, "placed", lambda tensor, device: tensor.as_subclass(OnGpu))
    return lambda env, store: Network(store=store, rank=env.rank, backend="nccl", timeout_s=20)


@pytest.mark.parametrize("sync", ["local-master", "sharded"])
def test_json_and_legs_go_to_nccl_as_it_wants_them(
    tmp_path: Path, network_of: Any, sync: SchemeName
) -> None:
    """JSON on the device; all communicators used by one thread in one order; closed at the end."""
    nodes = NODES if sync == "local-master" else (2, 2)
    topology = Topology(Shape((1,)), nodes)

    def main(env: RankEnv, store: Store) -> None:
        network = network_of(env, PrefixStore("json", store))
        group = Group(network, "all", range(sum(nodes)), "nccl")
        ranks = [{"rank": rank} for rank in range(sum(nodes))]
        assert group.all_gather_json({"rank": env.rank}) == ranks
        with pytest.raises(ValueError, match="must be CUDA"):
            group.all_gather(torch.zeros(1))
        group.close()
        assert StandIn.num_closed == 1

        StandIn.begun.clear()
        network = network_of(env, PrefixStore("legs", store))
        holders = Holders.of(topology, [0])
        scheme = SCHEMES[sync](holders, topology.places[env.rank], is_serial=True)
        groups = make_groups(topology, topology.places[env.rank], network, scheme.members)
        actions = scheme.actions(groups.legs, None, EXACT)
        cpu = torch.device("cpu")
        chain = Chain(actions, cpu, 20, Meters(), in_one_thread=True)
        parameters = list(nn.Linear(3, 3).parameters())
        buckets = [Bucket([p], 0, cpu, None, scheme.num_shards) for p in parameters]
        for bucket in buckets:
            bucket.wire = bucket.flat = bucket.flat.fill_(env.rank + 1.0).as_subclass(OnGpu)
            chain.launch(bucket)
        for bucket in buckets:
            assert chain.take() is bucket
            assert set(bucket.flat.tolist()) == {sum(rank + 1.0 for rank in range(sum(nodes)))}
        if sync == "sharded":
            leads = has_mate = True
            wanted = ["_reduce_scatter_base", "allreduce", "_allgather_base"]
        else:
            leads, has_mate = env.rank in (0, 2), env.rank in (0, 1)
            wanted = ["reduce"] * has_mate + ["allreduce"] * leads + ["broadcast"] * has_mate
        assert [name for name, _ in StandIn.begun] == wanted * len(buckets)
        assert len({thread for _, thread in StandIn.begun}) == 1
        chain.close()
        StandIn.num_closed = 0
        groups.close()
        assert StandIn.num_closed == leads + has_mate

    run_ranks(nodes, main, tmp_path)


def test_links_leave_the_gpu_to_computing_where_this_torch_lets_them() -> None:
    link, legs, old = (SimpleNamespace(config=SimpleNamespace(max_ctas=-1)) for _ in range(3))
    del old.config
    for options, is_link in ((link, True), (legs, False), (old, True)):
        comm.tune_nccl(options, name="a", ranks=(3, 5), is_link=is_link)
        assert options.is_high_priority_stream
        assert (options.group_name, options.global_ranks_in_group) == ("a", [3, 5])
    assert (link.config.max_ctas, legs.config.max_ctas) == (4, -1)


@pytest.mark.skipif(not is_nccl_available(), reason="this torch has no NCCL")
def test_torch_s_own_options_take_what_we_set() -> None:
    from torch._C._distributed_c10d import ProcessGroupNCCL

    options = ProcessGroupNCCL.Options()
    comm.tune_nccl(options, name="links/0-1", ranks=(0, 1), is_link=True)
    assert (options.group_name, options.global_ranks_in_group) == ("links/0-1", [0, 1])


def test_a_torch_without_nccl_trains(tmp_path: Path) -> None:
    words = "--image-size=32 --batch-size=4 --synthetic-samples=8 --max-steps=1 --no-validate"
    argv = [*words.split(), f"--run-dir={tmp_path}", "synthetic"]
    hidden = "import torch._C._distributed_c10d as c; c.__dict__.pop('ProcessGroupNCCL', None)"
    code = f"{hidden}; from bundlerun.workers.train import main; raise SystemExit(main({argv}))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
