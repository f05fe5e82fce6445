"""Models by name: of libraries, and of functions that ask for the number of outputs, or do not."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.meta import build_on_default_device
from bundlerun.splits.sources.build import build_model
from bundlerun.splits.sources.users import called_with_outputs


def sizes(model: object) -> dict[str, tuple[int, ...]]:
    assert isinstance(model, nn.Module)
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "head", "size"),
    [
        ("torchvision:fcn_resnet50", "classifier.4.weight", (7, 512, 1, 1)),
        ("torchvision:r3d_18", "fc.weight", (7, 512)),
        ("torchvision:retinanet_resnet50_fpn", "head.classification_head.cls_logits.bias", (63,)),
        ("torchvision:fasterrcnn_resnet50_fpn", "roi_heads.box_predictor.cls_score.bias", (7,)),
        ("torchvision:raft_small", "mask_predictor", ()),
    ],
)
def test_models_of_torchvision_of_all_tasks_have_as_many_outputs(
    name: str, head: str, size: tuple[int, ...]
) -> None:
    with torch.device("meta"):
        found = sizes(build_on_default_device(lambda: build_model(name, 7)))
    assert found.get(head, ()) == size


def test_a_model_of_timm_has_as_many_outputs() -> None:
    pytest.importorskip("timm", reason="the extra timm is not installed")
    assert sizes(build_model("timm:resnet10t", 7))["fc.weight"] == (7, 512)
    with pytest.raises(ConfigError, match="Invalid pretrained tag"):
        build_model("timm:resnet10t.none", 7)


def test_a_model_of_transformers_is_built_from_its_config(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="the extra hf is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    # One that names no head, and one that does.
    config.save_pretrained(tmp_path / "bare")
    config.architectures = ["ViTForMaskedImageModeling"]
    config.save_pretrained(tmp_path / "masked")
    model = build_model(f"hf:{tmp_path}/bare", 7)
    assert isinstance(model, nn.Module)
    assert model(torch.randn(2, 3, 8, 8)).logits.shape == (2, 7)
    assert type(build_model(f"hf:{tmp_path}/masked", 7)).__name__ == "ViTForMaskedImageModeling"
    config.architectures = ["ViTForNobody"]
    config.save_pretrained(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"has no 'ViTForNobody'; nearest: "):
        build_model(f"hf:{tmp_path}/other", 7)


@pytest.fixture
def _modules_kept() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.mark.usefixtures("_modules_kept")
def test_a_function_of_a_package_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "mynets"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "small.py").write_text(
        "from torch import nn\nfrom mynets.sizes import WIDTH\n"
        "def build(num_classes): return nn.Linear(WIDTH, num_classes)"
    )
    (package / "sizes.py").write_text("WIDTH = 3")
    # And a file elsewhere that imports it.
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "net.py").write_text("from mynets.small import build")
    monkeypatch.chdir(tmp_path)
    for name in ("mynets.small:build", "deep/net.py"):
        assert sizes(build_model(name, 7))["weight"] == (7, 3)
    with pytest.raises(
        ConfigError, match=r"'mynets.small' has no function 'biuld'; nearest: build"
    ):
        build_model("mynets.small:biuld", 7)


@pytest.mark.parametrize(
    ("build", "given"),
    [
        (lambda: (), ()),
        (lambda n: (n,), (7,)),
        (lambda n=10: (n,), (7,)),
        (lambda pretrained=True: (pretrained,), (True,)),
        (lambda weights=None, num_classes=10: (weights, num_classes), (None, 7)),
        (lambda width=64, *, num_outputs: (width, num_outputs), (64, 7)),
        (lambda *args, **kwargs: (args, kwargs), ((), {})),
    ],
)
def test_a_function_gets_the_number_of_outputs_where_it_asks_for_it(
    build: Callable[..., object], given: object
) -> None:
    assert called_with_outputs(build, 7, "mine") == given


def test_a_function_that_needs_more_is_refused() -> None:
    with pytest.raises(ConfigError, match="'mine' needs width, depth, and is given the number of"):
        called_with_outputs(lambda n, width, depth: n, 7, "mine")


class Warm(nn.Module):
    """Loads weights while it is built, and looks at them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        with torch.device("cpu"):
            loaded = {"weight": torch.ones(2, 3), "bias": torch.full((2,), 5.0)}
        self.layer.load_state_dict(loaded)
        assert float(self.layer.bias.sum()) == 10.0

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_a_model_that_looks_at_the_weights_it_loads_is_built_for_the_check_too() -> None:
    with torch.device("meta"):
        model = build_on_default_device(Warm)
    assert isinstance(model, Warm)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    model = build_on_default_device(Warm)
    assert isinstance(model, Warm)
    assert float(model.layer.bias[0]) == 5.0
