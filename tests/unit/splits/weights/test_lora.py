"""Adapters beside linear layers: what is trained, what files have of them, what is exported."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import check_adapters
from bundlerun.launcher.run_folder.adapters import merged
from bundlerun.splits.models import make_stages
from bundlerun.splits.weights.loading import Initial
from bundlerun.splits.weights.lora import Lora, add_adapters

pytest.importorskip("peft", reason="the extra lora is not installed")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 6)
        self.norm = nn.BatchNorm1d(6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.second = nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        return self.head(torch.tanh(self.second(x)))


def with_adapters(model: nn.Module, *targets: str) -> nn.Module:
    made, _ = add_adapters(model, Lora(rank=2, alpha=3.0, targets=targets))
    assert isinstance(made, nn.Module)
    return made


def trained(model: nn.Module) -> list[str]:
    return [name for name, p in model.named_parameters() if p.requires_grad]


def test_adapters_and_the_last_layer_are_trained() -> None:
    model, said = add_adapters(Net(), Lora(rank=2, alpha=3.0))
    assert isinstance(model, nn.Module)
    assert trained(model) == [
        "first.lora_A.default.weight", "first.lora_B.default.weight",
        "second.lora_A.default.weight", "second.lora_B.default.weight",
        "head.weight", "head.bias",
    ]  # fmt: skip
    assert not model.train().norm.training
    assert said.startswith("adapters of rank 2 beside 2 linear layers, and head: 7e-05 of 0.0003")


def test_those_that_are_named_are_trained() -> None:
    assert trained(with_adapters(Net(), "hea*")) == [
        "head.lora_A.default.weight", "head.lora_B.default.weight"
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match="--lora-targets 'secnd' names no linear layer; nearest: "
    ):
        with_adapters(Net(), "first", "secnd")


def test_a_model_with_adapters_begins_with_weights_and_is_cut(tmp_path: Path) -> None:
    source = Net()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    model = with_adapters(Net())
    found = Initial(model, str(tmp_path), "it", num_outputs=4, new_head="auto")
    assert found.lines()[1] == "not loaded: nothing of the model"
    stages = make_stages(model, cut=("second",), num_stages=2)
    for stage in stages:
        found.load(stage)
    x = torch.randn(5, 3)
    front, rear = (stage.eval() for stage in stages)
    # The second of two matrices is zeros at first.
    assert torch.equal(rear(*front(x)), source.eval()(x))
    # A run of ours has adapters in its files.
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    other = with_adapters(Net())
    Initial(other, str(tmp_path), "it", num_outputs=4, new_head="off").load(other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_what_is_exported_is_a_model_without_adapters() -> None:
    model = with_adapters(Net()).double().eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    plain = Net().double().eval()
    plain.load_state_dict(merged(model.state_dict(), {"lora": 2, "lora_alpha": 3.0}))
    x = torch.randn(5, 3, dtype=torch.float64)
    torch.testing.assert_close(plain(x), model(x))
    state = Net().state_dict()
    assert merged(state, {}) == state


def test_stages_that_their_author_has_cut() -> None:
    given = [nn.Linear(3, 6), nn.Sequential(nn.Tanh(), nn.Linear(6, 4))]
    stages, _ = add_adapters(copy.deepcopy(given), Lora(rank=2, alpha=3.0))
    assert not isinstance(stages, nn.Module)
    assert trained(stages[0]) == ["lora_A.default.weight", "lora_B.default.weight"]
    assert trained(stages[1]) == ["1.weight", "1.bias"]


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    check_adapters(0)
    with pytest.raises(
        ConfigError, match=r"--lora 8 needs the package peft, .*'bundlerun\[lora\]'"
    ):
        check_adapters(8)
