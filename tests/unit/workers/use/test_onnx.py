from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.cli import main
from bundlerun.launcher.commands.use import export
from tests.unit.workers.use.checkpoint_files import checkpoint_of

_NEEDED = ("onnx", "onnxscript", "onnxruntime")
needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in _NEEDED),
    reason=f"one of {', '.join(_NEEDED)} is not installed",
)


@needs_packages
def test_the_file_computes_what_the_model_does_for_any_number_of_images(tmp_path: Path) -> None:
    import onnxruntime

    model = checkpoint_of(tmp_path / "run", "squeezenet1_1")
    file = tmp_path / "m.onnx"
    assert main(["export", str(tmp_path / "run"), "-o", str(file)]) == 0
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        (found,) = session.run(["logits"], {"images": images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-4, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.onnx", "m.onnx.json", "run"]


def test_without_the_packages_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "_ONNX_PACKAGES", ("no_such_package",))
    assert main(["export", str(tmp_path), "-o", str(tmp_path / "m.onnx")]) == 2
    assert "bundlerun[onnx]" in capsys.readouterr().err
