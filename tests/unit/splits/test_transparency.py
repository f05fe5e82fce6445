"""Stages in a row compute, to the bit, what the unsplit model computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import DenseNet, ResNet, SwinTransformer
from torchvision.models.resnet import Bottleneck
from torchvision.models.vision_transformer import VisionTransformer

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import boundary_names, cut_model
from bundlerun.splits.models import make_stages
from bundlerun.splits.sources.build import build_model
from tests.unit.splits.stage_chain import assert_same, named, run_chain, run_whole


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small_vit() -> nn.Module:
    return VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=3,
        num_heads=2,
        hidden_dim=8,
        mlp_dim=16,
        num_classes=3,
    )


def small_swin() -> nn.Module:
    return SwinTransformer([4, 4], 8, [2, 2], [1, 2], [2, 2], num_classes=3)


def torchvision_model(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = build_model(name, 3)
        assert isinstance(model, nn.Module)
        return model

    return build


class Shuffled(nn.Module):
    """Sizes, several results of one operation and in-place work on both sides of a cut."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Linear(8, 8)
        self.act = nn.ReLU(inplace=True)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.rear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.front(x)
        z = self.act(y.view(x.shape[0], 2, 4))
        z, _ = self.attention(z, z, z)
        a, b = z.reshape(y.shape[0], 8).chunk(2, dim=1)
        y = y + torch.cat([b, a], 1)
        y += x
        return self.rear(torch.relu_(y))


def inception() -> nn.Module:
    model = torchvision_model("inception_v3")()
    # torchvision's own head needs images of 299 pixels; this one works on small ones.
    model.AuxLogits = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(768, 3))
    return model


def small_densenet() -> nn.Module:
    return DenseNet(8, (2, 3, 2), 16, bn_size=2, num_classes=3)


def small_bottleneck_resnet() -> nn.Module:
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=3)


CASES = {
    "resnet18": (torchvision_model("resnet18"), 32, ["layer2.0.relu", "layer3.1.add"]),
    "bottleneck": (small_bottleneck_resnet, 32, ["layer2.1.conv2", "layer2.1.relu_1", "layer4"]),
    "densenet": (small_densenet, 32, ["features.denseblock2.denselayer2.relu2"]),
    "googlenet": (torchvision_model("googlenet"), 64, ["inception4a.branch3", "inception4e", "fc"]),
    "inception_v3": (inception, 96, ["Mixed_6a", "Mixed_6e.branch7x7_2"]),
    "mobilenet": (
        torchvision_model("mobilenet_v3_small"),
        32,
        ["features.4.block.2.fc1", "features.8"],
    ),
    "efficientnet": (
        torchvision_model("efficientnet_b0"),
        32,
        ["features.3.1.block.1", "features.6"],
    ),
    "shufflenet": (
        torchvision_model("shufflenet_v2_x0_5"),
        32,
        ["stage2.2.branch2.3", "stage4"],
    ),
    "squeezenet": (torchvision_model("squeezenet1_1"), 64, ["features.6.expand3x3"]),
    "vit": (small_vit, 16, ["encoder.layers.encoder_layer_1.mlp"]),
    "vit-4": (small_vit, 16, ["encoder", "encoder.layers.encoder_layer_2.self_attention"]),
    "swin": (small_swin, 32, ["features.1.1.add", "features.3"]),
}
OVER_CASES = pytest.mark.parametrize(("build", "size", "cuts"), CASES.values(), ids=CASES.keys())


def still(model: nn.Module) -> nn.Module:
    """The model without anything random."""
    for module in model.modules():
        for name in ("p", "dropout", "dropout_rate", "dropout_prob", "drop_rate"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@OVER_CASES
def test_outputs_gradients_and_statistics_are_bit_equal(
    build: Callable[[], nn.Module], size: int, cuts: list[str], training: bool
) -> None:
    torch.manual_seed(0)
    model = still(build()).train(training)
    whole = copy.deepcopy(model)
    image = torch.randn(2, 3, size, size)
    stages = cut_model(model, cuts)
    assert_same(run_chain(stages, image), run_whole(whole, image))


@pytest.mark.parametrize("cut", ["view", "attention", "chunk", "getitem_1", "cat", "add_1", "rear"])
def test_values_views_and_in_place_operations_cross_any_cut(cut: str) -> None:
    torch.manual_seed(0)
    model = Shuffled().double()
    whole = copy.deepcopy(model)
    image = torch.randn(3, 8, dtype=torch.float64)
    assert_same(run_chain(cut_model(model, [cut]), image), run_whole(whole, image))


def test_views_that_would_be_overwritten_apart_are_no_boundary() -> None:
    assert "act" not in boundary_names(Shuffled())
    with pytest.raises(ConfigError, match=r"'act' sends front, view apart.*act overwrites"):
        cut_model(Shuffled(), ["act"])


@pytest.mark.parametrize("case", ["bottleneck", "densenet", "googlenet", "vit", "swin"])
def test_the_stages_hold_the_model_s_state_under_its_names(case: str) -> None:
    build, _, cuts = CASES[case]
    with torch.device("meta"):
        model = build()
    stages = cut_model(model, cuts)
    names = [name for stage in stages for name in stage.state_dict()]
    assert len(stages) == len(cuts) + 1
    assert sorted(names) == sorted(model.state_dict())
    assert {n: id(p) for n, p in named(stages, "named_parameters")} == {
        n: id(p) for n, p in model.named_parameters()
    }


def test_dropout_and_stochastic_depth_follow_the_mode_of_the_stage() -> None:
    torch.manual_seed(0)
    model = torchvision_model("efficientnet_b0")()
    stages = cut_model(model, ["features.4"])
    image = torch.randn(2, 3, 32, 32)
    model.train()
    torch.manual_seed(1)
    expected = model(image)
    torch.manual_seed(1)
    (passed,) = stages[0](image)
    assert torch.equal(stages[1](passed), expected)
    for stage in stages:
        stage.eval()
    model.eval()
    assert torch.equal(stages[1](*stages[0](image)), model(image))


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(nn.functional.dropout(self.a(x), 0.5, training=self.training))


def test_functional_dropout_follows_the_mode_of_the_stage() -> None:
    model = FunctionalDropout().eval()
    front, rear = cut_model(model, ["b"])
    x = torch.ones(64, 4)
    assert not front.training
    assert torch.equal(rear(*front(x)), model(x))
    assert (front.train()(x)[0] == 0).any()


class Overwrites(nn.Module):
    """What it is given, which only running it shows."""

    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 1e6:
            x = x / 2
        return nn.functional.relu(x, inplace=True)


class OverwritesAfter(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.first = first
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.first(self.a(x)))


@pytest.mark.parametrize("first", [nn.ReLU(inplace=True), Overwrites()], ids=["known", "unknown"])
@pytest.mark.parametrize("is_listed", [True, False], ids=["listed", "traced"])
def test_a_stage_may_overwrite_what_it_receives(first: nn.Module, is_listed: bool) -> None:
    torch.manual_seed(0)
    model = OverwritesAfter(first)
    whole = copy.deepcopy(model)
    if is_listed:
        parts = [model.a, nn.Sequential(model.first, model.b)]
        stages = make_stages(parts, cut=[], num_stages=2)
    else:
        stages = cut_model(model, ["first"])
    x = torch.randn(3, 4)
    got, right = run_chain(stages, x), run_whole(whole, x)
    assert torch.equal(got.outputs[0], right.outputs[0])
    assert all(map(torch.equal, got.gradients.values(), right.gradients.values()))
