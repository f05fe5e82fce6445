"""What is said about the work of the stages, and the example of the inputs it is counted with."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import nn

from bundlerun.launcher.cli import main
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, ConfigError, NodeError
from bundlerun.launcher.layout.shape import Shape
from bundlerun.splits.costs import StageCosts
from bundlerun.splits.models import make_stages
from bundlerun.workers.model.division import costs_line, division_lines, load_warning
from bundlerun.workers.model.example import Example, describe, example_of, share_example
from bundlerun.workers.recipe import Recipe


def costs(*operations: int) -> list[StageCosts]:
    return [StageCosts(operations=n, sent_bytes=4_000, parameter_bytes=10**6) for n in operations]


def test_the_line_has_shares_operations_and_bytes_of_one_sample() -> None:
    assert costs_line(costs(6_000_000_000, 2_000_000_000), 2) == (
        "operations by stage, for one sample forward: "
        "stage 0 75% (3 GFLOP), 1.0 MB of parameters, sends 0.002 MB; "
        "stage 1 25% (1 GFLOP), 1.0 MB of parameters"
    )


@pytest.mark.parametrize(
    ("operations", "shape", "worst"),
    [
        ((65, 35), (1, 1), None),
        ((66, 34), (1, 1), "stage 0 does 1.3 times"),
        ((2, 98), (1, 1), "stage 1 does 2.0 times"),
        ((66, 34), (2, 1), None),
        ((50, 50), (3, 1), "stage 1 does 2.0 times"),
        ((40, 20, 20, 20), (1, 1, 1, 1), "stage 0 does 1.6 times"),
    ],
)
def test_a_device_with_much_more_than_the_mean_is_warned_of(
    operations: tuple[int, ...], shape: tuple[int, ...], worst: str | None
) -> None:
    found = load_warning(
        costs(*operations), Shape(shape), cut=("a",), num_chunks=len(operations), is_listed=False
    )
    assert (worst in found) if worst and found else found is worst


@pytest.mark.parametrize(
    ("cut", "is_listed", "mend"),
    [
        (("layer1",), False, "--cut 2 divides the operations as equally as the boundaries"),
        ((), False, "--cut 2 divides"),
        (("2",), False, "give that stage more devices in --shape"),
        ((), True, "move modules of it to a neighbour"),
    ],
)
def test_the_warning_has_a_mend(cut: tuple[str, ...], is_listed: bool, mend: str) -> None:
    found = load_warning(costs(9, 1), Shape((1, 1)), cut=cut, num_chunks=2, is_listed=is_listed)
    assert found is not None
    assert mend in found


def test_what_stages_share_is_told_with_its_size() -> None:
    model = nn.Sequential(*[nn.Linear(500, 500, bias=False) for _ in range(3)])
    model[2].weight = model[0].weight
    stages = make_stages(model, cut=["_1", "_2"], num_stages=3)
    config = TrainConfig(data="x", shape=Shape((1, 1, 1)))
    first, *_ = division_lines(config, stages, Example())
    assert first == (
        "stages share 1 parameter of 1 MB, such as 0.weight = 2.weight (stages 0 and 2): each has "
        "a copy, and in each step their gradients are summed"
    )
    model[0].weight.requires_grad_(False)
    first, *_ = division_lines(config, stages, Example())
    assert first.endswith("each has a copy, and none is trained")


def test_a_bad_cut_of_a_model_is_told() -> None:
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(8)])
    example = Example(inputs=(torch.empty(2, 4, device="meta"),))
    stages = make_stages(model, cut=["_1"], num_stages=2)
    config = TrainConfig(data="x", shape=Shape((1, 1)), cut=("_1",))
    line, warning = division_lines(config, stages, example)
    assert "stage 0 12% (3.2e-08 GFLOP)" in line
    assert "stage 1 does 1.8 times" in warning


def test_without_an_example_the_bytes_are_told() -> None:
    stages: list[nn.Module] = [nn.Linear(999, 1000), nn.Linear(1, 1)]
    config = TrainConfig(data="x", shape=Shape((1, 1)))
    assert list(division_lines(config, stages, Example())) == [
        "parameters by stage, operations not counted: stage 0 4.0 MB, stage 1 0.0 MB"
    ]


class Pair(NamedTuple):
    a: Any
    b: Any


def test_an_example_keeps_form_shapes_and_types_on_its_way() -> None:
    inputs = (torch.ones(3, 4), {"b": torch.zeros(3, dtype=torch.int64)}, Pair(torch.ones(3), 2))
    found = example_of(json.loads(json.dumps(describe(inputs))))
    assert found.num_samples == 3
    first, second, third = found.inputs
    assert (first.shape, first.dtype, first.is_meta) == ((3, 4), torch.float32, True)
    assert (second["b"].shape, second["b"].dtype) == ((3,), torch.int64)
    assert (third.a.shape, third.b) == ((3,), 2)


def test_no_example_is_nothing() -> None:
    assert example_of(None).inputs == ()


def shared(error: BundleError) -> Example:
    def example(num_samples: int) -> tuple[Any, ...]:
        raise error

    place = SimpleNamespace(stage=0, replica=0)
    session: Any = SimpleNamespace(place=place, gather_bundle=lambda own: [own])
    feed: Any = SimpleNamespace(example=example)
    return share_example(feed, session, cast(Recipe, object()), 2)


def test_samples_that_no_bundle_can_read_are_no_example() -> None:
    assert shared(ConfigError("sample 0 is no picture")) == Example()


def test_a_node_that_cannot_read_does_not_cut_by_other_rules_than_the_others() -> None:
    with pytest.raises(NodeError, match="a loading process died"):
        shared(NodeError("a loading process died"))


def test_plan_tells_the_costs_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    words = "plan --nodes 1x2 --shape 1,1 --model resnet18 --cut layer4 --image-size 32 --costs"
    assert main([*words.split(), "--json", "synthetic"]) == 0
    how, line, warning = json.loads(capsys.readouterr().out)["costs"]
    assert how == "cut by graph at layer4: the model traces"
    assert line.startswith("operations by stage, for one sample forward: stage 0 77%")
    assert "stage 0 does 1.5 times" in warning
