"""Adapters beside linear layers: what is trained, what files have of them, what is exported."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

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
from tests.extras import need

need("peft", "the extra lora is not installed")


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


def test_a_last_layer_that_is_tied_is_not_trained() -> None:
    """Nor is what comes before it: its weight is the embedding's."""
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 7))
    model[3].weight = model[0].weight
    model, said = add_adapters(model, Lora(rank=2, alpha=3.0))
    assert isinstance(model, nn.Module)
    assert trained(model) == ["1.lora_A.default.weight", "1.lora_B.default.weight"]
    assert said.startswith("adapters of rank 2 beside 1 linear layer: 1.6e-05 of ")


def test_those_that_are_named_are_trained() -> None:
    assert trained(with_adapters(Net(), "hea*")) == [
        "head.lora_A.default.weight", "head.lora_B.default.weight"
    ]  # fmt: skip
    with pytest.raises(
        ConfigError, match=r"--lora-targets 'secnd' names no layer that can have .*; nearest: "
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
    with pytest.raises(ConfigError, match="has adapters, and it none; give the --lora of that run"):
        Initial(Net(), str(tmp_path), "it", num_outputs=4, new_head="off")


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


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.spread = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.apart = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.point = nn.Conv2d(4, 6, 1, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.spread(torch.tanh(self.stem(x))))
        return self.head(torch.tanh(self.point(self.apart(x))).mean((2, 3)))


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model(tokens).logits
        return logits


def convolutional() -> tuple[nn.Module, Tensor, str, str]:
    return Convolutional(), torch.randn(5, 3, 8, 8).double(), "stem|point", "point"


def gpt_2() -> tuple[nn.Module, Tensor, str, str]:
    hf = pytest.importorskip("transformers", reason="the extra hf is not installed")
    config = hf.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2, num_labels=4, pad_token_id=0,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = Logits(hf.GPT2ForSequenceClassification(config))
    targets = r"model\.transformer\.h\.\d\.(attn\.c_attn|(attn|mlp)\.c_proj|mlp\.c_fc)"
    return model, torch.randint(1, 11, (5, 8)), targets, "model.transformer.h.1"


@pytest.mark.parametrize("make", [convolutional, gpt_2])
def test_layers_of_other_kinds_train_as_peft_trains_them_whole(make: Any) -> None:
    peft = pytest.importorskip("peft", reason="the extra lora is not installed")
    torch.manual_seed(4)
    plain, x, targets, cut = make()
    whole, own = copy.deepcopy(plain).double(), copy.deepcopy(plain).double()
    settings = peft.LoraConfig(r=2, lora_alpha=3.0, target_modules=targets)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft.inject_adapter_in_model(settings, whole)
    head = [p for n, p in whole.named_parameters() if ".score." in n or n.startswith("head.")]
    for parameter in head:
        parameter.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own, said = add_adapters(own, Lora(rank=2, alpha=3.0))
    assert trained(own) == trained(whole), said
    first = {n: p for n, p in whole.named_parameters() if "lora_A" in n}
    with torch.no_grad():
        for name, parameter in own.named_parameters():
            if name in first:
                parameter.copy_(first[name])
    stages = make_stages(own, cut=(cut,), num_stages=2, inputs=(x,))
    losses = []
    for run in (whole, nn.Sequential(*stages)):
        optimizer = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], lr=0.5)
        losses.append([step_of(run, x, optimizer) for _ in range(4)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)
    assert losses[0][-1] < losses[0][0]
    # What is exported is the plain model again, and computes the same.
    exported = copy.deepcopy(plain).double()
    exported.load_state_dict(merged(own.state_dict(), {"lora": 2, "lora_alpha": 3.0}))
    torch.testing.assert_close(exported.eval()(x), whole.eval()(x), rtol=1e-10, atol=1e-12)


def step_of(run: nn.Module, x: Tensor, optimizer: torch.optim.Optimizer) -> float:
    passed: Any = (x,)
    for part in run if isinstance(run, nn.Sequential) else [run]:
        passed = part(*passed)
        passed = passed if isinstance(passed, tuple) else (passed,)
    loss = nn.functional.cross_entropy(passed[0], torch.arange(5) % 4)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def test_convolutions_beside_which_peft_puts_another_are_left_out() -> None:
    for name in ("spread", "apart"):
        with pytest.raises(ConfigError, match="a convolution without groups and dilation"):
            with_adapters(Convolutional(), name)
    assert trained(with_adapters(Convolutional(), "*")) == [
        f"{name}.lora_{letter}.default.weight"
        for name in ("stem", "point", "head")
        for letter in "AB"
    ]


def test_a_layer_whose_weight_another_one_uses_has_no_adapter() -> None:
    model = Net()
    model.second.weight = nn.Parameter(torch.randn(6, 6))
    model.first = nn.Linear(6, 6)
    model.first.weight = model.second.weight
    with pytest.raises(ConfigError, match="whose weight no other layer has"):
        with_adapters(model, "second")


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
