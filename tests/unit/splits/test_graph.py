from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.graph.model import TracedModel, boundary_names, cut_model
from bundlerun.splits.sources.build import build_model


def small_resnet() -> nn.Module:
    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=3)


def test_boundary_names_come_in_order_and_all_of_them_cut() -> None:
    model = small_resnet()
    names = boundary_names(model)
    traced = TracedModel(model)
    assert [n for n in names if n in ("layer1", "layer2", "layer3", "layer4", "fc")] == [
        "layer1",
        "layer2",
        "layer3",
        "layer4",
        "fc",
    ]
    assert all(len(traced.cut([name])) == 2 for name in names)


def test_cuts_are_put_in_the_order_of_the_model() -> None:
    stages = cut_model(small_resnet(), ["layer4", "layer2"])
    tops = [list(dict(stage.named_children())) for stage in stages]
    assert tops[1:] == [["layer2", "layer3"], ["layer4", "avgpool", "fc"]]


def test_a_cut_may_be_an_operation_or_the_graph_s_own_name_of_it() -> None:
    by_name, by_node = (cut_model(small_resnet(), [n]) for n in ("layer2.0.add", "add_1"))
    assert list(by_name[1].state_dict()) == list(by_node[1].state_dict())


def test_an_unknown_cut_lists_the_nearest_valid_names() -> None:
    with pytest.raises(ConfigError, match=r"unknown cut 'layr3' of ResNet; nearest: .*layer3"):
        cut_model(small_resnet(), ["layr3"])


def test_two_names_of_one_boundary_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'layer2' and 'layer2.0.conv1' are the same boundary"):
        cut_model(small_resnet(), ["layer2", "layer2.0.conv1"])


def test_more_cuts_than_boundaries_are_refused_with_both_numbers() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ConfigError, match="2 cuts are more than the 1 boundaries of Sequential"):
        cut_model(model, ["_1", "_2"])


@pytest.mark.parametrize("name", ["conv1", "x"])
def test_a_cut_before_the_first_operation_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"cut '{name}'"):
        cut_model(small_resnet(), [name])


class Reshaped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        return self.b(self.a(x).sigmoid()).view(n, 2, 2).tanh()


def test_a_size_that_cannot_be_worked_out_again_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cut 'b' needs getitem: sizes of tensors that do not"):
        cut_model(Reshaped(), ["b"])
    assert boundary_names(Reshaped()) == ["tanh"]


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        while x.sum() > 1:
            x = x / 2
        return x


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.loop = Looping()
        self.b = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.loop(self.a(x)))


def test_a_submodule_with_control_flow_stays_whole() -> None:
    model = Around()
    front, rear = cut_model(model, ["loop"])
    x = torch.ones(2, 4)
    assert torch.equal(rear(*front(x)), model(x))


def test_a_model_with_control_flow_of_its_own_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot cut Looping: its own forward does not trace"):
        boundary_names(Looping())


class Extras(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("scale", torch.full((4,), 2.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) * self.scale + torch.arange(4.0))


def test_constants_hidden_buffers_and_unused_parameters_are_kept() -> None:
    model = Extras()
    before = set(vars(model))
    front, rear = cut_model(model, ["b"])
    x = torch.ones(2, 4)
    assert torch.equal(rear(*front(x)), model(x))
    assert set(vars(model)) == before
    assert list(front.state_dict()) == ["a.weight", "a.bias"]
    assert sorted(rear.state_dict()) == ["b.bias", "b.weight", "unused.bias", "unused.weight"]


class FromState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.tables = nn.Parameter(torch.randn(2, 4))
        self.register_buffer("shift", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        x = x.reshape(-1, self.shift.shape[0]) + self.tables[1] + self.shift.neg()
        return x.sigmoid().to(self.shift.dtype)


def test_what_is_computed_from_state_follows_the_state() -> None:
    model = FromState()
    front, rear = cut_model(model, ["relu"])
    model.load_state_dict({name: t + 1 for name, t in model.state_dict().items()})
    x = torch.ones(2, 4)
    assert torch.equal(rear(*front(x)), model(x))
    assert sorted(rear.state_dict()) == ["shift", "tables"]


def test_a_stage_that_needs_the_type_of_a_buffer_holds_the_buffer() -> None:
    assert boundary_names(FromState()) == ["relu", "reshape", "getitem", "add", "neg"]


def test_a_replaced_submodule_is_the_one_that_runs() -> None:
    front, _ = cut_model(small_resnet().eval(), ["layer2"])
    block = front.get_submodule("layer1.0")
    block.bn1 = nn.Identity()
    x = torch.randn(1, 3, 32, 32)
    changed = front(x)
    block.bn1 = nn.BatchNorm2d(64).eval()
    assert not torch.equal(front(x)[0], changed[0])


def test_tracing_leaves_the_mode_of_every_module_alone() -> None:
    model = small_resnet()
    model.get_submodule("layer1").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    cut_model(model, ["layer3"])
    assert {name: module.training for name, module in model.named_modules()} == modes


def test_a_tuple_may_cross_whole() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)
            self.b = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.cat(self.a(x).chunk(2, 1), 1))

    model, x = Pair(), torch.randn(2, 4)
    front, rear = cut_model(model, ["cat"])
    assert torch.equal(rear(*front(x)), model(x))


def test_auxiliary_outputs_cross_in_training_only() -> None:
    with torch.device("meta"):
        model = build_model("googlenet", 3)
        image = torch.empty(2, 3, 64, 64)
    assert isinstance(model, nn.Module)
    front, rear = cut_model(model, ["inception5a"])
    assert len(front.train()(image)) == 3
    assert len(front.eval()(image)) == 1
    assert type(rear.train()(*front.train()(image))).__name__ == "GoogLeNetOutputs"


def test_a_stage_compiles_without_a_graph_break() -> None:
    front, rear = cut_model(small_resnet(), ["layer3.0.bn2"])
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(front, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), front(x))
    assert len(compiled(x)) == 2
    assert rear.training


class Positions(nn.Module):
    """A table that all layers read, as rotary embeddings are; it may be saved, or written."""

    def __init__(self, persistent: bool, writes: bool) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 4), persistent=persistent)
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self._writes = writes

    def forward(self, x: Tensor) -> Tensor:
        if self._writes:
            self.table.mul_(0.5)
        for layer in self.layers:
            x = layer(x) * self.table
        return x


def test_a_table_that_is_only_read_and_not_saved_may_be_in_several_stages() -> None:
    model, x = Positions(persistent=False, writes=False), torch.randn(2, 4)
    front, rear = cut_model(model, ["layers.1"])
    assert torch.equal(rear(*front(x)), model(x))
    assert [*front.state_dict(), *rear.state_dict()] == list(model.state_dict())


@pytest.mark.parametrize(("persistent", "writes"), [(True, False), (False, True)])
def test_a_table_that_is_saved_or_written_stays_in_one_stage(
    persistent: bool, writes: bool
) -> None:
    with pytest.raises(ConfigError, match=r"'layers.1' puts table into two|the 0 boundaries of"):
        cut_model(Positions(persistent=persistent, writes=writes), ["layers.1"])
