"""The hybrid sync equals one flat sum, on ragged nodes, for awkward parameters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store
from torch.utils.checkpoint import checkpoint

from launcher.topology import Topology
from tests.ranks.harness import outcomes, run_ranks
from workers.comm import Network
from workers.env import RankEnv
from workers.groups import make_groups
from workers.meters import Meters
from workers.sync import GradientSync, cut_into_buckets

NUM_EXTRA = 3


class Awkward(nn.Module):
    """Frozen, unused, twice used, rarely used and mixed-dtype parameters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.twice = nn.Parameter(torch.randn(5, dtype=torch.float64))
        self.wide = nn.Parameter(torch.randn(7, 11, dtype=torch.float64))
        self.low = nn.Parameter(torch.randn(3, dtype=torch.bfloat16))
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(6))
        self.rare = nn.Parameter(torch.randn(2, dtype=torch.float64))

    def loss(self, number: int) -> Tensor:
        """A loss whose gradients depend on the micro-batch `number`."""
        scale = 1.0 + number
        total = (self.twice * self.twice.sin()).sum() * scale + (self.wide**2).sum() * scale
        total = total + (self.low * self.low).sum().double() + self.frozen.sum()
        return total + self.rare.sum() if number == 0 else total


def gradients(model: Awkward) -> dict[str, Tensor | None]:
    return {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def flat_sum(num_microbatches: int) -> dict[str, Tensor | None]:
    """What one process without buckets gets."""
    model = Awkward()
    for number in range(num_microbatches):
        model.loss(number).backward()
    return gradients(model)


def make_sync(
    model: nn.Module, env: RankEnv, store: Store, topology: Topology, size: int
) -> GradientSync:
    network = Network(store=store, rank=env.rank, backend="gloo", timeout_s=30, address="127.0.0.1")
    groups = make_groups(topology, topology.places[env.rank], network)
    return GradientSync(
        list(model.parameters()),
        num_extra=NUM_EXTRA,
        groups=groups,
        device=torch.device("cpu"),
        bucket_bytes=size,
        timeout_s=30,
        meters=Meters(),
    )


@pytest.mark.parametrize("bucket_bytes", [1, 200, 1 << 30])
@pytest.mark.parametrize("nodes", [(3,), (1, 1), (3, 2, 1)], ids=str)
def test_the_sum_over_ragged_nodes_is_the_flat_sum(
    nodes: tuple[int, ...], bucket_bytes: int, tmp_path: Path
) -> None:
    topology = Topology((1,), nodes)
    counts = [rank % 3 for rank in range(sum(nodes))]  # rank 0 has no micro-batch

    def main(env: RankEnv, store: Store) -> None:
        model = Awkward()
        sync = make_sync(model, env, store, topology, bucket_bytes)
        found = []
        for _ in range(2):
            sync.start_step()
            first = sum(counts[: env.rank])
            for j in range(counts[env.rank]):
                if j == counts[env.rank] - 1:
                    sync.arm()
                model.loss(first + j).backward()
            sync.extra[0] += env.rank
            sync.extra[1:] += 1
            sync.finish()
            found.append(gradients(model))
            world = sum(nodes)
            assert sync.extra.tolist() == [world * (world - 1) / 2, world, world]
        sync.close()
        torch.save(found, tmp_path / f"{env.rank}.pt")

    run_ranks(nodes, main, tmp_path)
    wanted = flat_sum(sum(counts))
    per_rank = [torch.load(tmp_path / f"{rank}.pt") for rank in range(sum(nodes))]
    for steps in per_rank:
        for step in steps:
            assert_sums(step, wanted)
    for name, value in per_rank[0][0].items():
        others = [step[name] for steps in per_rank for step in steps]
        assert all(value is o is None or torch.equal(value, o) for o in others), name


def assert_sums(found: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    for name, value in wanted.items():
        if value is None:
            assert found[name] is None, name
        else:
            tolerance = 1e-2 if value.dtype == torch.bfloat16 else 1e-12
            torch.testing.assert_close(found[name], value, rtol=tolerance, atol=0)


def test_a_gradient_that_comes_twice_in_the_last_backward_is_refused(tmp_path: Path) -> None:
    """Its sum may be under way at the second: without a word the replicas would miss a part."""

    def main(env: RankEnv, store: Store) -> None:
        model = nn.Linear(3, 3)
        sync = make_sync(model, env, store, Topology((1,), (2,)), 1)

        def twice(x: Tensor) -> Tensor:
            for _ in range(2):
                x = checkpoint(model, x, use_reentrant=True)
            return x

        sync.start_step()
        sync.arm()
        twice(torch.ones(2, 3, requires_grad=True)).sum().backward()

    found = outcomes((2,), main, tmp_path, 60)
    assert sorted(found) == [0, 1]
    assert all("use_reentrant=False" in text for text in found.values())


def test_checkpointing_that_is_not_reentrant_sums_as_without(tmp_path: Path) -> None:
    def main(env: RankEnv, store: Store) -> None:
        found = []
        for is_checkpointed in (True, False):
            torch.manual_seed(env.rank)
            model = nn.Linear(3, 3)
            part = PrefixStore(str(is_checkpointed), store)
            sync = make_sync(model, env, part, Topology((1,), (2,)), 1)
            x = torch.ones(2, 3, requires_grad=True)
            sync.start_step()
            sync.arm()
            for _ in range(2):
                x = checkpoint(model, x, use_reentrant=False) if is_checkpointed else model(x)
            x.square().sum().backward()
            sync.finish()
            sync.close()
            found.append([p.grad for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        assert all(g is not None and g.any() for g in found[0])

    run_ranks((2,), main, tmp_path)


def test_the_first_replica_is_copied_to_all(tmp_path: Path) -> None:
    topology = Topology((1,), (2, 2))

    def main(env: RankEnv, store: Store) -> None:
        model = nn.BatchNorm1d(3)
        sync = make_sync(model, env, store, topology, 100)
        values = [
            torch.full((2, 2), float(env.rank)),
            torch.tensor(env.rank),
            torch.full((4,), env.rank, dtype=torch.bfloat16),
        ]
        sync.copy_from_first(values)
        assert not any(v.any() for v in values)
        sync.close()

    run_ranks((2, 2), main, tmp_path)


def test_buckets_hold_one_dtype_and_go_last_parameter_first() -> None:
    parameters = [
        nn.Parameter(torch.zeros(n, dtype=d))
        for n, d in [
            (4, torch.float32),
            (100, torch.float32),
            (4, torch.float64),
            (4, torch.float64),
        ]
    ]
    buckets = cut_into_buckets(parameters, 128)
    assert [[p.numel() for p in bucket] for bucket in buckets] == [[4, 4], [100], [4]]
    flat = [p for bucket in buckets for p in bucket]
    assert all(a is b for a, b in zip(flat, reversed(parameters), strict=True))
