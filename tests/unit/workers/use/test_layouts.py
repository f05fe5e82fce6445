from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.cli import main
from bundlerun.workers.use.layouts import timm_data
from tests.unit.workers.use.checkpoint_files import CLASSES, checkpoint_of

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed"
)
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@needs_timm
def test_timm_loads_the_folder_with_classes_and_preprocessing(tmp_path: Path) -> None:
    import timm
    from timm.data import resolve_model_data_config

    model = checkpoint_of(tmp_path / "run", "timm:test_resnet")
    folder = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "-o", str(folder), "--format=library"]) == 0
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images), model(images))
    assert loaded.pretrained_cfg["label_names"] == CLASSES
    assert loaded.num_classes == len(CLASSES)
    data = resolve_model_data_config(loaded)
    assert data["input_size"] == (3, 32, 32)
    assert data["crop_pct"] == pytest.approx(32 / 37)
    assert json.loads((folder / "about.json").read_text())["step"] == 3
    assert not list(tmp_path.glob(".*"))


@needs_transformers
def test_transformers_loads_the_folder_with_its_classes(tmp_path: Path) -> None:
    import transformers

    own = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=32, patch_size=16,
    )  # fmt: skip
    own.save_pretrained(tmp_path / "hf")
    model = checkpoint_of(tmp_path / "run", f"hf:{tmp_path / 'hf'}")
    folder = tmp_path / "out"
    assert main(["export", str(tmp_path / "run"), "-o", str(folder), "--format=library"]) == 0
    loaded = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(images).logits, model(images).logits)
    assert loaded.config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "out", "--format=library"], "leave --format library out"),
        (["-o", "there", "--format=library"], "is there already"),
        (["-o", "out"], "must end in one of"),
    ],
)
def test_what_has_no_layout_is_refused_and_leaves_nothing(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint_of(tmp_path / "run", "squeezenet1_1")
    (tmp_path / "there").write_text("")
    before = sorted(tmp_path.iterdir())
    assert main(["export", "run", *words]) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_an_image_that_is_squeezed_is_so_in_timms_words() -> None:
    known = {
        "center_crop": 32, "resize": [32, 32], "interpolation": "bilinear",
        "mean": [0.5] * 3, "std": [0.5] * 3,
    }  # fmt: skip
    assert (timm_data(known)["crop_mode"], timm_data(known)["crop_pct"]) == ("squash", 1.0)
