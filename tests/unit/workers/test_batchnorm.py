"""Deferred batch norm: torch's own, with the running statistics moved once a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from workers.batchnorm import DeferredBatchNorm, StatisticsPool, defer_batchnorm


def pooled(module: nn.Module) -> tuple[nn.Module, StatisticsPool]:
    deferred = defer_batchnorm(module)
    sums = torch.zeros(StatisticsPool.size(deferred), dtype=torch.float64)
    return deferred, StatisticsPool(deferred, sums)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 5, 4) * 2 + 1


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_one_microbatch_is_torchs_batch_norm(momentum: float | None) -> None:
    own = nn.BatchNorm2d(3, momentum=momentum)
    deferred, pool = pooled(nn.BatchNorm2d(3, momentum=momentum))
    for _ in range(3):
        x = images(4)
        assert torch.equal(own(x), deferred(x))
        pool.apply()
        pool.sums.zero_()
    for name, value in own.state_dict().items():
        torch.testing.assert_close(deferred.state_dict()[name], value)


def test_microbatches_of_different_size_are_pooled() -> None:
    whole = nn.BatchNorm2d(3)
    deferred, pool = pooled(nn.BatchNorm2d(3))
    x = images(7)
    whole(x)
    for part in x.split(3):
        deferred(part)
    pool.apply()
    torch.testing.assert_close(deferred.running_mean, whole.running_mean)
    torch.testing.assert_close(deferred.running_var, whole.running_var)


def test_sums_of_two_replicas_add_up() -> None:
    whole = nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    whole(x)
    replicas = [pooled(nn.BatchNorm1d(3)) for _ in range(2)]
    for (module, _), part in zip(replicas, x.chunk(2), strict=True):
        module(part)
    total = replicas[0][1].sums + replicas[1][1].sums
    for module, pool in replicas:
        pool.sums.copy_(total)
        pool.apply()
        torch.testing.assert_close(module.running_var, whole.running_var)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    whole = nn.BatchNorm1d(2).double()
    deferred, pool = pooled(nn.BatchNorm1d(2))
    x = torch.randn(64, 2) + 1000
    whole(x.double())
    for part in x.split(16):
        deferred(part)
    pool.apply()
    error = (deferred.running_var.double() - whole.running_var).abs().max()
    assert error < 1e-4


def test_evaluation_uses_the_running_statistics_and_gathers_nothing() -> None:
    own = nn.BatchNorm2d(3)
    deferred, pool = pooled(nn.BatchNorm2d(3))
    x = images(4)
    assert torch.equal(own.eval()(x), deferred.eval()(x))
    assert not pool.sums.any()


def test_names_and_parameters_stay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(nn.BatchNorm2d(3)))
    before = {name: p for name, p in model.named_parameters()}
    keys = list(model.state_dict())
    deferred = defer_batchnorm(model)
    assert isinstance(deferred.get_submodule("1.0"), DeferredBatchNorm)
    assert list(deferred.state_dict()) == keys
    assert all(p is before[name] for name, p in deferred.named_parameters())


def test_layers_without_running_statistics_stay_as_they_are() -> None:
    layer = nn.BatchNorm2d(3, track_running_stats=False)
    assert defer_batchnorm(layer) is layer
    synchronised = nn.SyncBatchNorm(3)
    assert defer_batchnorm(synchronised) is synchronised
