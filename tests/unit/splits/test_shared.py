"""Parameters that several stages use: who has them, under which names, and who owns them."""

from __future__ import annotations

from typing import Self

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import TracedModel, cut_model
from bundlerun.splits.models import cuttable, make_stages
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.splits.shared import (
    Shared,
    kept_elsewhere,
    model_parameters,
    shared_of,
    shared_parameters,
)
from tests.ranks.tied_model import CUTS, NAMES, Tied
from tests.unit.splits.stage_chain import run_chain, run_whole


def tied() -> Tied:
    torch.manual_seed(1)
    return Tied(10)


def cut(model: nn.Module, cutter: str, num_parts: int) -> list[nn.Module]:
    if cutter == "graph":
        return cut_model(model, CUTS[num_parts])
    return ReplayedModel(model, [torch.randn(2, 3, 8, 8)]).cut(CUTS[num_parts])


@pytest.mark.parametrize("cutter", ["graph", "replay"])
def test_each_stage_that_uses_a_parameter_has_the_models_own_under_all_its_names(
    cutter: str,
) -> None:
    model = tied()
    stages = cut(model, cutter, 3)
    users = {
        "embed.weight": (0, 2),
        "mix.weight": (0, 1, 2),
        "mix.bias": (0, 1, 2),
        "scale": (0, 2),
        "kept": (1, 2),
        "gain": (1, 2),
    }
    for number, stage in enumerate(stages):
        assert set(shared_of(stage)) == {
            Shared(names=NAMES[name], stages=used) for name, used in users.items() if number in used
        }
        for shared, parameter in shared_parameters(stage).items():
            for name in shared.names:
                assert stage.get_parameter(name) is model.get_parameter(name) is parameter
    assert kept_elsewhere(stages[1], 1) == {"mix.weight", "mix.bias"}
    assert kept_elsewhere(stages[2], 2) == {name for names in NAMES.values() for name in names}
    kept = [
        name
        for number, stage in enumerate(stages)
        for name in stage.state_dict().keys() - kept_elsewhere(stage, number)
    ]
    assert sorted(kept) == sorted(model.state_dict()), "each name once, and all of them"


@pytest.mark.parametrize("num_parts", [2, 3, 4])
def test_stages_that_share_compute_what_the_model_does(num_parts: int) -> None:
    images = torch.randn(2, 3, 8, 8)
    whole = run_whole(tied(), images)
    chain = run_chain(cut_model(tied(), CUTS[num_parts]), images)
    assert torch.equal(chain.outputs[0], whole.outputs[0])
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(chain.gradients[name], gradient)


def test_an_optimizer_hears_the_first_name_that_the_model_has() -> None:
    model = tied()
    known = dict(model.named_parameters())
    for stage in cut_model(model, CUTS[3]):
        named = list(model_parameters(stage))
        assert all(known[name] is parameter for name, parameter in named)
        assert len(named) == len(list(stage.parameters()))


def test_what_two_chunks_of_one_stage_use_is_not_shared() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4)))
    model[2].weight = model[0].weight
    stages = make_stages(model, cut=["_1", "_2", "_3"], num_stages=2, chunks_per_stage=2)
    assert [shared_of(stage) for stage in stages] == [(), ()]


def test_a_model_that_comes_cut_may_share_too() -> None:
    parts = [nn.Linear(4, 4), nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))]
    parts[2][0].weight = parts[0].weight  # type: ignore[index]
    stages = make_stages(parts, cut=(), num_stages=3)
    wanted = (Shared(names=("0.weight", "2.0.weight"), stages=(0, 2)),)
    assert [shared_of(stage) for stage in stages] == [wanted, (), wanted]
    assert {"0.weight", "2.0.weight"} <= stages[0].state_dict().keys() & stages[
        2
    ].state_dict().keys()
    inputs = torch.ones(1, 4)
    (whole,) = make_stages(parts, cut=(), num_stages=1)
    assert torch.equal(stages[2](*stages[1](*stages[0](inputs))), whole(inputs))


class Freezing(Tied):
    """Its own `train` says whether the embedding is trained."""

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.embed.weight.requires_grad_(not mode)
        return self


def test_stages_agree_on_whether_a_shared_parameter_is_trained() -> None:
    for stage in cut_model(Freezing(10), CUTS[2]):
        assert [stage.train(m).decode.weight.requires_grad for m in (True, False)] == [False, True]


class Counting(nn.Module):
    """Uses one buffer at its begin and at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.factor = nn.Buffer(torch.ones(4))
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.first(x) * self.factor) * self.factor


def test_a_buffer_in_two_stages_is_refused_by_name() -> None:
    for way in (TracedModel(Counting()), ReplayedModel(Counting(), [torch.ones(2, 4)])):
        with pytest.raises(ConfigError, match="'inner' puts factor into two stages"):
            way.find("inner")
    norm = nn.BatchNorm1d(4)
    with pytest.raises(ConfigError, match=r"0.running_mean = 1.running_mean is a buffer that"):
        make_stages([norm, norm], cut=(), num_stages=2)


def test_two_parameters_in_the_same_memory_are_refused_in_two_stages() -> None:
    def model() -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))

    flat = nn.Parameter(torch.zeros(32))
    beside, within = model(), model()
    for n in (0, 2):
        beside[n].weight.data = flat.data[n * 8 : n * 8 + 16].view(4, 4)
    within[2].weight.data = within[0].weight.data[:]
    x = [torch.ones(2, 4)]
    for way in (cuttable(within, "graph", x), cuttable(within, "replay", x)):
        with pytest.raises(ConfigError, match=r"0\.weight of stage 0 and 2\.weight of stage 1 are"):
            way.cut(["2"])
    assert len(cuttable(beside, "graph", x).cut(["2"])) == 2


def test_of_equal_cuts_the_one_is_taken_that_divides_nothing_shared() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)), nn.Linear(4, 9))
    model[2].weight, model[2].bias = model[1].weight, model[1].bias
    traced = TracedModel(model)
    # Both cuts leave 40 parameters on one side and 45 on the other.
    assert traced.names == ["1", "2", "3"]
    assert traced.equal_cuts(2) == ("3",)
