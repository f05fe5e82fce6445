"""Making stages: the check before the start, and models that compute while they are built."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Self, cast

import pytest
import torch
from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.model.example import Example
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.model.forwards import forwards_of
from bundlerun.workers.model.norms.batchnorm import StatisticsPool
from bundlerun.workers.model.stage import check_stages, cut_model, make_stage
from bundlerun.workers.recipe import DataInfo, Recipe, load_recipe

CONFIG = TrainConfig(data="x", shape=Shape((1, 1)), cut=("2",))
INFO = DataInfo(num_train=8, num_val=0, num_outputs=37)


def with_model(build: Callable[[DataInfo], nn.Module], **more: object) -> Recipe:
    return cast(Recipe, SimpleNamespace(model=build, **more))


def classifier(num_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, num_outputs))


def test_the_check_asks_for_the_outputs_that_the_data_has() -> None:
    asked: list[int] = []

    def build(info: DataInfo) -> nn.Module:
        asked.append(info.num_outputs)
        return classifier(info.num_outputs)

    check_stages(CONFIG, with_model(build, num_outputs=lambda: 37))
    assert asked == [37]


def test_the_check_leaves_out_what_depends_on_data_that_is_not_open() -> None:
    built: list[nn.Module] = []

    def build(info: DataInfo) -> nn.Module:
        built.append(classifier(info.num_outputs))
        return built[-1]

    check_stages(CONFIG, with_model(build))
    assert not built
    make_stage(CONFIG, with_model(build), INFO, 0)
    assert len(built) == 1


def test_the_check_needs_no_data_where_the_model_does_not_ask() -> None:
    with pytest.raises(ConfigError, match="1 cuts are more than the 0 boundaries"):
        check_stages(CONFIG, with_model(lambda _: nn.Sequential(nn.Linear(2, 2))))


def test_weights_loaded_while_building_are_checked_without_a_warning() -> None:
    weights = classifier(37).state_dict()

    def build(info: DataInfo) -> nn.Module:
        model = classifier(info.num_outputs)
        model.load_state_dict(weights)
        return model

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_stages(CONFIG, with_model(build, num_outputs=lambda: 37))
    stage = make_stage(CONFIG, with_model(build), INFO, 1)
    assert torch.equal(stage.state_dict()["1.weight"], weights["1.weight"])


@pytest.mark.parametrize(
    "rate",
    [
        lambda: torch.linspace(0, 0.5, 3)[1].item(),
        lambda: float(torch.linspace(0, 0.5, 3).numpy()[1]),
        lambda: torch.linspace(0, 0.5, 3).cpu().tolist()[1],
        lambda: 0.25 if torch.ones(2).sum() > 1 else 0.5,
    ],
)
def test_a_recipe_s_model_may_read_numbers_while_it_is_built(rate: Callable[[], float]) -> None:
    made: list[nn.Dropout] = []

    def build(_: DataInfo) -> nn.Module:
        made.append(nn.Dropout(rate()))
        return nn.Sequential(nn.Linear(4, 4), made[-1])

    check_stages(CONFIG, with_model(build))
    assert made[-1].p == 0.25


def test_an_error_of_the_model_s_own_code_is_told_with_its_traceback() -> None:
    def build(_: DataInfo) -> nn.Module:
        return {}["my key"]  # type: ignore[no-any-return]

    with pytest.raises(ConfigError) as caught:
        check_stages(CONFIG, with_model(build))
    told = str(caught.value)
    assert told.count("Traceback") == 1
    assert told.endswith("KeyError: 'my key'")
    assert "in build" in told.splitlines()[2]


def test_a_parameter_without_a_shape_is_named() -> None:
    recipe = with_model(lambda _: nn.Sequential(nn.Flatten(), nn.LazyLinear(3)))
    with pytest.raises(ConfigError, match=r"'1.weight' of the model has no shape yet .a lazy"):
        make_stage(TrainConfig(data="x", shape=Shape((1,))), recipe, INFO, 0)


def test_a_model_without_anything_to_train_is_refused() -> None:
    for build in (lambda _: nn.Flatten(), lambda _: nn.Linear(2, 2).requires_grad_(False)):
        with pytest.raises(ConfigError, match="no parameter that is trained"):
            make_stage(TrainConfig(data="x", shape=Shape((1,))), with_model(build), INFO, 0)


def test_an_optimizer_is_tried_on_what_the_model_s_train_lets_be_trained() -> None:
    class Thawed(nn.Sequential):
        def train(self, mode: bool = True) -> Self:
            super().train(mode)
            return self.requires_grad_(mode)

    def optimizer(named: Iterable[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for _, p in named if p.requires_grad])  # none: an error

    recipe = with_model(lambda _: Thawed(nn.Linear(2, 2)).eval(), optimizer=optimizer)
    config = TrainConfig(data="x", shape=Shape((1,)))
    stage = cut_model(config, recipe, INFO, is_loaded_later=True).stages[0]
    assert not stage.training
    assert not any(p.requires_grad for p in stage.parameters())


@pytest.mark.parametrize(
    ("text", "says"),
    [("import nosuchmodule", "cannot be imported: ModuleNotFoundError"), ("", "has no function")],
)
def test_a_models_file_that_is_no_use_is_told_before_any_rank_starts(
    text: str, says: str, tmp_path: Path
) -> None:
    file = tmp_path / "bad_model.py"
    file.write_text(text)
    config = TrainConfig(data="synthetic", shape=Shape((1,)), model=f"{file}:build")
    with pytest.raises(ConfigError, match=says):
        check_stages(config, load_recipe(config))
    own = replace(config, recipe="own.py")  # may read --model as it likes
    check_stages(own, load_recipe(config))


def test_stages_that_replay_are_not_compiled_and_the_run_says_so() -> None:
    example = Example(inputs=(torch.ones(2, 4, device="meta"),))
    parts = {"front": nn.Linear(4, 4), "rear": nn.Linear(4, 2)}
    recipe = with_model(lambda _: nn.Sequential(OrderedDict(parts)))
    config = replace(CONFIG, cut=("rear",), compile="default", cutter="replay")
    made = cut_model(config, recipe, INFO, example=example)
    assert [text.partition(":")[0] for text in made.remarks] == [
        "cut by replay at rear",
        "--compile=default compiles no stage that is cut by replay",
    ]
    stage = made.stages[0]
    statistics = StatisticsPool(stage, torch.zeros(StatisticsPool.size(stage), dtype=torch.float64))
    state = ForwardState(stage, 1, lambda numbers: numbers)
    device = torch.device("cpu")
    (forward,) = forwards_of(stage, config, statistics, state, device, recomputes=False)
    state.begin_step()
    assert torch.equal(forward(torch.ones(3, 4))[0], stage(torch.ones(3, 4))[0])
    told = cut_model(replace(config, cutter="graph"), recipe, INFO, example=example).remarks
    assert told == ["cut by graph at rear: --cutter graph"]
