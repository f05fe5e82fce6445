"""Stages of several chunks: they compute what the model does, under the model's own names."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.models import make_stages
from bundlerun.splits.stage import chunk_forwards, chunk_parameters
from bundlerun.workers.model.norms.batchnorm import StatisticsPool


class Net(nn.Module):
    """Four parts in two layers; a weight used twice in one part; one that nothing uses."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
        self.layer2 = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.layer2[1].weight = self.layer2[0].weight
        self.head = nn.Linear(4, 3)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(torch.tanh(self.layer1(x))))


def chain(stages: Sequence[nn.Module], chunks: int, x: Tensor) -> Tensor:
    forwards = [chunk_forwards(stage, chunks) for stage in stages]
    tensors: object = (x,)
    for chunk in range(chunks):
        for of_stage in forwards:
            tensors = of_stage[chunk](*tensors)  # type: ignore[misc]
    assert isinstance(tensors, Tensor)
    return tensors


def cut_net() -> tuple[Net, list[nn.Module]]:
    torch.manual_seed(1)
    model = Net()
    return model, make_stages(
        model,
        cut=["layer1.1", "layer2", "head"],
        num_stages=2,
        chunks_per_stage=2,
        model_name="net",
    )


@pytest.mark.parametrize("training", [True, False])
def test_the_chunks_in_turn_are_the_model(training: bool) -> None:
    model, stages = cut_net()
    x = torch.randn(5, 4)
    model.train(training)
    for stage in stages:
        stage.train(training)
    wanted = model(x)
    model.layer1[1].reset_running_stats()
    assert torch.equal(chain(stages, 2, x), wanted)


def test_the_stages_have_the_names_of_the_model_and_its_own_tensors() -> None:
    model, stages = cut_net()
    found = {n: p for s in stages for n, p in s.named_parameters(remove_duplicate=False)}
    wanted = dict(model.named_parameters(remove_duplicate=False))
    assert found.keys() == wanted.keys()
    assert all(found[name] is wanted[name] for name in wanted)
    names = [name for stage in stages for name in stage.state_dict()]
    assert sorted(names) == sorted(model.state_dict())


def test_a_chunk_has_the_parameters_that_it_uses_and_the_first_the_unused_ones() -> None:
    _, stages = cut_net()
    name_of = {p: name for stage in stages for name, p in stage.named_parameters()}
    found = [[name_of[p] for p in part] for s in stages for part in chunk_parameters(s, 2)]
    layer2 = ["layer2.0.weight", "layer2.0.bias", "layer2.1.bias"]
    assert found == [
        ["layer1.0.weight", "layer1.0.bias"],
        layer2,
        [f"{m}.{n}" for m in ("unused", "layer1.1", "layer1.2") for n in ("weight", "bias")],
        ["head.weight", "head.bias"],
    ]


def test_a_chunk_runs_the_batch_norm_whose_statistics_are_gathered() -> None:
    _, stages = cut_net()
    rear = stages[1]
    pool = StatisticsPool(rear, torch.zeros(StatisticsPool.size(rear), dtype=torch.float64))
    forwards = chunk_forwards(rear.train(), 2)
    pool.around(forwards[1])(torch.randn(5, 4))
    assert not pool.sums.any()
    pool.around(forwards[0])(torch.randn(5, 4))
    assert pool.sums[0] == 5


def test_a_list_of_modules_is_dealt_out_and_neighbours_apart_may_share_a_weight() -> None:
    modules = [nn.Linear(4, 4) for _ in range(4)]
    modules[2].weight = modules[0].weight
    stages = make_stages(modules, cut=[], num_stages=2, chunks_per_stage=2)
    assert [list(stage.state_dict()) for stage in stages] == [
        ["0.weight", "0.bias", "2.weight", "2.bias"],
        ["1.weight", "1.bias", "3.weight", "3.bias"],
    ]
    assert [len(part) for part in chunk_parameters(stages[0], 2)] == [2, 1]
    x = torch.randn(5, 4)
    assert torch.equal(chain(stages, 2, x), nn.Sequential(*modules)(x))


def test_a_list_of_another_length_than_chunks_is_refused() -> None:
    with pytest.raises(ConfigError, match="cut into 3 parts and 2 stages of 2 chunks need 4"):
        make_stages([nn.ReLU()] * 3, cut=[], num_stages=2, chunks_per_stage=2, model_name="mine")


def test_one_chunk_is_the_stage_with_all_its_parameters() -> None:
    stage = nn.Linear(2, 2)
    assert chunk_forwards(stage, 1) == [stage]
    assert chunk_parameters(stage, 1) == [[stage.weight, stage.bias]]
