from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import TracedModel
from bundlerun.splits.meta import build_on_default_device
from bundlerun.splits.models import choose_cuts, make_stages
from bundlerun.splits.sources.build import build_model

EXAMPLE = Path(__file__).parents[3] / "examples" / "my_model.py"


def on_meta(name: str) -> nn.Module:
    with torch.device("meta"):
        model = build_on_default_device(partial(build_model, name, 10))
    assert isinstance(model, nn.Module)
    return model


def parameter_bytes(stage: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in stage.parameters())


def test_an_unknown_model_lists_the_nearest_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown --model 'resnet81'; nearest: .*resnet18"):
        build_model("resnet81", 10)


def test_one_stage_is_the_model_itself() -> None:
    model = on_meta("alexnet")
    assert make_stages(model, cut=["2"], num_stages=1)[0] is model


def operations(stages: list[nn.Module], image: Tensor) -> list[int]:
    counts = []
    passed: tuple[Tensor, ...] = (image,)
    for stage in stages:
        with FlopCounterMode(display=False) as counter:
            result = stage(*passed)
        passed = result if isinstance(result, tuple) else (result,)
        counts.append(counter.get_total_flops())
    return counts


@pytest.mark.parametrize("num_stages", [2, 4])
@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "vgg11_bn"])
def test_families_have_default_cuts_of_about_equal_work(name: str, num_stages: int) -> None:
    counts = operations(
        make_stages(on_meta(name), cut=(), num_stages=num_stages),
        torch.empty(1, 3, 224, 224, device="meta"),
    )
    assert len(counts) == num_stages
    # Blocks are not divided: VGG has five, the largest of which holds a third of the work.
    slack = 1.6 if name.startswith("vgg") else 1.3
    assert max(counts) <= slack * sum(counts) / num_stages


@pytest.mark.parametrize(
    ("name", "cuts"), [("resnet18", ("layer3",)), ("resnet101", ("layer3.9",))]
)
def test_resnets_are_cut_where_a_block_begins(name: str, cuts: tuple[str, ...]) -> None:
    assert choose_cuts(TracedModel(on_meta(name)), (), [1, 1]) == cuts


@pytest.mark.parametrize("name", ["regnet_y_400mf", "resnet18"])
def test_models_build_without_memory_for_parameters(name: str) -> None:
    assert {t.device.type for t in on_meta(name).state_dict().values()} == {"meta"}


@pytest.mark.parametrize(
    ("name", "cut", "meant"),
    [
        ("resnet18", "half", "layer3"),
        ("resnet18", "head", "avgpool"),
        ("vgg16_bn", "block3", "features.14"),
        ("vgg11", "block5", "features.16"),
    ],
)
def test_families_name_cuts(name: str, cut: str, meant: str) -> None:
    assert choose_cuts(TracedModel(on_meta(name)), (cut,), [1, 1]) == (meant,)


@pytest.mark.parametrize("name", ["densenet121", "mobilenet_v2", "vit_b_16"])
@pytest.mark.parametrize("num_stages", [3])
def test_equal_parts_hold_about_equal_parameter_bytes(name: str, num_stages: int) -> None:
    model = on_meta(name)
    stages = make_stages(model, cut=[str(num_stages)], num_stages=num_stages)
    largest = max(map(parameter_bytes, stages))
    assert sum(map(parameter_bytes, stages)) == parameter_bytes(model)
    assert largest < 1.5 * parameter_bytes(model) / num_stages


def test_more_stages_than_the_family_has_blocks_fall_back_to_equal_parts() -> None:
    assert len(make_stages(on_meta("vgg11"), cut=[], num_stages=7)) == 7


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        (["3"], "--cut 3 asks for 3 equal parts and the shape has 2 stages; use --cut 2"),
        (["layer2", "layer3"], "makes 3 stages and the shape has 2; give 1 names"),
        (["blok3"], "unknown cut 'blok3'"),
        (["hlf"], "unknown cut 'hlf' of ResNet; nearest: half"),
    ],
)
def test_cuts_that_do_not_fit_are_refused(cut: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stages(on_meta("resnet18"), cut=cut, num_stages=2)


def test_a_file_of_the_user_gives_a_model_that_is_cut_by_name() -> None:
    model = build_model(f"{EXAMPLE}:build", 7)
    assert isinstance(model, nn.Module)
    front, rear = make_stages(model, cut=["blocks.2"], num_stages=2)
    x = torch.randn(2, 3, 16, 16)
    model.eval()
    assert torch.equal(rear.eval()(*front.eval()(x)), model(x))
    assert model(x).shape == (2, 7)


def test_a_list_of_stages_keeps_the_names_of_sequential() -> None:
    stages = build_model(f"{EXAMPLE}:build_stages", 7)
    assert isinstance(stages, list)
    front, rear = make_stages(stages, cut=[], num_stages=2)
    assert [*front.state_dict(), *rear.state_dict()] == list(nn.Sequential(*stages).state_dict())
    (passed,) = front(torch.randn(2, 3, 16, 16))
    assert rear(passed).shape == (2, 7)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x + 1, x + 2


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


def test_a_list_of_stages_also_runs_as_one() -> None:
    (whole,) = make_stages([Two(), Product()], cut=[], num_stages=1)
    assert torch.equal(whole(torch.ones(2)), torch.full((2,), 6.0))


def test_a_list_of_another_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="mine is cut into 2 stages and the shape has 3"):
        make_stages([Two(), Product()], cut=[], num_stages=3, model_name="mine")


def test_cuts_of_a_list_are_refused() -> None:
    with pytest.raises(ConfigError, match="--cut a is given and the model is already cut into 2"):
        make_stages([Two(), Product()], cut=["a"], num_stages=2)


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("", "build", "has no function 'build'"),
        ("def biuld(): ...", "build", "nearest: biuld"),
        ("def build(): return 3", "build", "returned int; return a torch.nn.Module, or a list"),
    ],
)
def test_a_file_without_a_model_is_refused(
    tmp_path: Path, text: str, name: str, message: str
) -> None:
    file = tmp_path / "a file.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        build_model(f"{file}:{name}", 3)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model '.*none.py': no such file"):
        build_model(f"{tmp_path}/none.py:build", 3)


def test_a_model_is_cut_on_the_meta_device_too() -> None:
    """As the launcher checks the cuts; `with torch.device(...)` is a mode of torch."""
    with torch.device("meta"):
        stages = make_stages(build_model("resnet18", 10), cut=(), num_stages=2)
    assert len(stages) == 2
