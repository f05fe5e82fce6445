"""Batch norms whose statistics are gathered around them: torch's own, moved once a step."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.model.norms.batchnorm import StatisticsPool


def pooled(module: nn.Module) -> tuple[Callable[..., Tensor], StatisticsPool]:
    """The forward of the stage as the trainer calls it, and its pool."""
    pool = StatisticsPool(module, torch.zeros(StatisticsPool.size(module), dtype=torch.float64))
    return pool.around(module), pool


def images(count: int, channels: int = 3) -> Tensor:
    return torch.randn(count, channels, 5, 4) * 2 + 1


def buffers(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def step(forward: Callable[..., Tensor], pool: StatisticsPool, *inputs: Tensor) -> list[Tensor]:
    outputs = [forward(x) for x in inputs]
    pool.apply(pool.counts.tolist())
    pool.sums.zero_()
    return outputs


class NormAct(nn.BatchNorm2d):
    """As timm's: an activation inside, around torch's forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class OwnForward(nn.BatchNorm2d):
    """Calls the function itself, as older subclasses do."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, True, self.momentum or 0
        ).tanh()


class Replacing(nn.BatchNorm2d):
    """Puts new tensors into its buffers, as batch norms of virtual batches do."""

    def forward(self, x: Tensor) -> Tensor:
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = self.running_mean.clone(), self.running_var.clone()
        result = F.batch_norm(x, mean, variance, self.weight, self.bias, True, self.momentum or 0)
        self.running_mean, self.running_var = mean, variance
        assert self.num_batches_tracked is not None
        self.num_batches_tracked = self.num_batches_tracked + 1
        return result


class Sum(nn.Module):
    """One batch norm under two names, in a list too, and called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(3)
        self.listed = [self.first]

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + self.listed[0](x * 3 + 1)


@pytest.mark.parametrize(
    "make",
    [
        nn.BatchNorm2d,
        lambda n: nn.BatchNorm2d(n, momentum=1.0),
        lambda n: nn.BatchNorm2d(n, momentum=None),
        lambda n: nn.BatchNorm2d(n, momentum=0.0),
        lambda n: nn.BatchNorm2d(n, affine=False),
        nn.SyncBatchNorm,
        lambda n: nn.SyncBatchNorm(n, momentum=None),
        NormAct,
        OwnForward,
        Replacing,
        lambda n: nn.BatchNorm2d(n).double(),
        lambda n: nn.InstanceNorm2d(n, track_running_stats=True),
        lambda n: nn.InstanceNorm2d(n, track_running_stats=True, momentum=None),
        lambda n: nn.BatchNorm2d(n, track_running_stats=False),
        lambda n: nn.BatchNorm2d(n).eval(),
    ],
)
def test_one_microbatch_a_step_is_what_the_module_does_by_itself(
    make: Callable[[int], nn.Module],
) -> None:
    torch.manual_seed(0)
    own = nn.Sequential(make(3))
    stage = copy.deepcopy(own)
    module = stage[0]
    forward, pool = pooled(stage)
    for _ in range(3):
        x = images(4).to(next(iter([*own.parameters(), *own.buffers(), images(1)])).dtype)
        assert torch.equal(own(x), step(forward, pool, x)[0])
    assert stage[0] is module
    for name, value in own.state_dict().items():
        torch.testing.assert_close(stage.state_dict()[name], value)


def test_microbatches_of_different_size_are_pooled() -> None:
    whole, stage = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    x = images(7)
    whole(x)
    step(*pooled(stage), *x.split(3))
    torch.testing.assert_close(buffers(stage), buffers(whole))


def test_samples_of_instance_norms_are_averaged() -> None:
    whole = nn.InstanceNorm2d(3, track_running_stats=True)
    stage = copy.deepcopy(whole)
    x = images(7)
    whole(x)
    step(*pooled(stage), *x.split(3))
    torch.testing.assert_close(buffers(stage), buffers(whole))


def test_sums_of_two_replicas_add_up() -> None:
    whole = nn.BatchNorm1d(3)
    x = torch.randn(8, 3)
    whole(x)
    modules = [nn.BatchNorm1d(3) for _ in range(2)]
    replicas = [pooled(module) for module in modules]
    for (forward, _), part in zip(replicas, x.chunk(2), strict=True):
        forward(part)
    total = replicas[0][1].sums + replicas[1][1].sums
    for module, (_, pool) in zip(modules, replicas, strict=True):
        pool.sums.copy_(total)
        pool.apply(pool.counts.tolist())
        torch.testing.assert_close(module.running_var, whole.running_var)


def test_a_large_mean_does_not_swallow_the_variance() -> None:
    whole, stage = nn.BatchNorm1d(2).double(), nn.BatchNorm1d(2)
    x = torch.randn(64, 2) + 1000
    whole(x.double())
    step(*pooled(stage), *x.split(16))
    error = (stage.running_var.double() - whole.running_var).abs().max()
    assert error < 1e-4


def test_evaluation_uses_the_running_statistics_and_gathers_nothing() -> None:
    own, stage = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
    forward, pool = pooled(stage)
    x = images(4)
    stage.eval()
    assert torch.equal(own.eval()(x), forward(x))
    assert not pool.sums.any()


def test_a_module_under_two_names_and_in_a_list_gathers_each_of_its_calls() -> None:
    stage = Sum()
    x = images(4)
    whole = nn.BatchNorm2d(3)
    whole(torch.cat([x, x * 3 + 1]))
    step(*pooled(stage), x)
    torch.testing.assert_close(buffers(stage.first), buffers(whole))


def test_layers_that_saw_nothing_stay() -> None:
    stage = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(2)])
    pool = StatisticsPool(stage, torch.zeros(StatisticsPool.size(stage), dtype=torch.float64))
    before = buffers(stage[1])
    step(pool.around(lambda x: stage[0](x)), pool, images(4))
    torch.testing.assert_close(buffers(stage[1]), before, rtol=0, atol=0)
    assert stage[0].num_batches_tracked == 1


def test_a_norm_that_only_reads_its_statistics_keeps_them() -> None:
    class Frozen(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)

    stage = Frozen(3)
    stage.running_mean.fill_(0.5)  # type: ignore[union-attr]
    own = copy.deepcopy(stage)
    x = images(4)
    (out,) = step(*pooled(stage), x)
    assert torch.equal(out, own(x))
    torch.testing.assert_close(buffers(stage), buffers(own), rtol=0, atol=0)


def test_hooks_of_the_user_run_and_see_the_usual_buffers() -> None:
    stage = nn.Sequential(nn.BatchNorm2d(3))
    seen: list[Tensor] = []
    stage[0].register_forward_pre_hook(lambda m, _: seen.append(m.running_mean))
    stage[0].register_forward_hook(lambda m, _, y: (seen.append(m.running_mean), y * 2)[1])
    own = nn.BatchNorm2d(3)
    x = images(4)
    real = stage[0].running_mean
    assert torch.equal(step(*pooled(stage), x)[0], own(x) * 2)
    assert all(found is real for found in seen)


def test_the_buffers_are_back_after_an_exception() -> None:
    class Broken(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            raise RuntimeError("broken")

    stage = Broken(3)
    before, real = buffers(stage), stage.running_mean
    forward, pool = pooled(stage)
    with pytest.raises(RuntimeError, match="broken"):
        forward(images(4))
    assert stage.running_mean is real
    assert stage.momentum == 0.1
    assert not pool.sums.any()
    torch.testing.assert_close(buffers(stage), before, rtol=0, atol=0)


def test_a_recomputation_counts_once() -> None:
    class Recomputed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.norm, x, use_reentrant=False)

    stage, whole = Recomputed(), nn.BatchNorm2d(3)
    forward, pool = pooled(stage)
    x = images(4)
    whole(x)
    forward(x).sum().backward()
    pool.apply(pool.counts.tolist())
    torch.testing.assert_close(buffers(stage.norm), buffers(whole))


def test_backwards_come_after_other_forwards() -> None:
    stage = nn.Sequential(nn.BatchNorm2d(3), nn.Tanh(), nn.BatchNorm2d(3))
    own = copy.deepcopy(stage)
    forward, pool = pooled(stage)
    parts = images(6).split(2)
    losses = [forward(x).square().sum() for x in parts]
    pool.apply(pool.counts.tolist())
    for loss in losses:
        loss.backward()
    for x in parts:
        own(x).square().sum().backward()
    for p, q in zip(stage.parameters(), own.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_copies_are_the_users_own_modules() -> None:
    stage = nn.Sequential(nn.BatchNorm2d(3))
    forward, pool = pooled(stage)
    x = images(4)
    for copied in (copy.deepcopy(stage), pickle.loads(pickle.dumps(stage))):
        own = nn.BatchNorm2d(3)
        assert torch.equal(copied(x), own(x))
        torch.testing.assert_close(copied[0].running_mean, own.running_mean)
    assert not pool.sums.any()
    assert torch.equal(stage[0].running_mean, torch.zeros(3))
    forward(x)
    assert pool.sums.any()


def test_norms_of_several_dtypes_are_gathered_together() -> None:
    class Mixed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).double())

    stage = Mixed(nn.BatchNorm2d(3), nn.BatchNorm2d(3).double())
    own = copy.deepcopy(stage)
    x = images(4)
    assert torch.equal(step(*pooled(stage), x)[0], own(x))
    torch.testing.assert_close(buffers(stage), buffers(own))


def test_a_compiled_stage_gathers_without_a_graph_break_or_a_second_compilation() -> None:
    stage = nn.Sequential(nn.Conv2d(3, 3, 1), NormAct(3), nn.BatchNorm2d(3))
    own = copy.deepcopy(stage)
    compiled = torch.compile(stage, backend="eager", fullgraph=True)
    _, pool = pooled(stage)
    forward = pool.around(compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            x = images(4)
            torch.testing.assert_close(step(forward, pool, x)[0], own(x))
    torch.testing.assert_close(buffers(stage), buffers(own))


def test_one_value_per_channel_is_refused_by_name_where_the_module_refuses_it() -> None:
    stage = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3))
    forward, _ = pooled(stage)
    with pytest.raises(ConfigError, match="batch norm '1' of 3 channels gets one value of each"):
        forward(torch.randn(1, 3))
    stage.eval()
    forward(torch.randn(1, 3))
    allowing = OwnForward(3)
    with pytest.raises(ConfigError):
        pooled(allowing)[0](torch.randn(1, 3, 1, 1))
    unlike = nn.InstanceNorm2d(3, track_running_stats=True)
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        pooled(unlike)[0](torch.randn(1, 3, 1, 1))


def test_a_lazy_norm_is_refused_until_it_knows_its_channels() -> None:
    stage = nn.Sequential(nn.LazyBatchNorm2d())
    with pytest.raises(ConfigError, match="'0' is a LazyBatchNorm2d that does not know"):
        StatisticsPool.size(stage)
    x = images(4)
    stage(x)
    own = copy.deepcopy(stage)
    own(x)
    step(*pooled(stage), x)
    torch.testing.assert_close(buffers(stage), buffers(own))
