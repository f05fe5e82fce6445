"""An unknown model is told before anything is imported."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.name import (
    ModelName,
    OfFile,
    OfLibrary,
    OfModule,
    check_model,
    find_module,
    is_own,
    package_behind,
    parse_file,
    parse_model,
    timm_names,
    torchvision_names,
)

IMAGES = "image-classification"


def test_the_names_are_those_that_torchvision_itself_lists() -> None:
    assert torchvision_names() == torchvision.models.list_models(module=torchvision.models)


def test_an_unknown_name_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(ConfigError, match=r"unknown --model 'resnet19'; nearest: resnet18"):
        check_model("resnet19", IMAGES)
    check_model("resnet18", IMAGES)
    check_model("whatever it likes", "own.py")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model 'none.py': no such file"):
        check_model("none.py:build", IMAGES)
    (tmp_path / "net.py").touch()
    check_model(str(tmp_path / "net.py"), IMAGES)


def test_where_the_sources_do_not_say_any_name_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("torchvision", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    check_model("resnet19", IMAGES)
    spec.submodule_search_locations = [str(tmp_path)]
    check_model("resnet19", IMAGES)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    check_model("resnet19", IMAGES)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("resnet18", None),
        ("net.py", ("net.py", "build")),
        ("a/net.py:deep", ("a/net.py", "deep")),
    ],
)
def test_a_file_of_ones_own_may_name_the_function(name: str, own: tuple[str, str] | None) -> None:
    assert parse_file(name) == own


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("resnet18", OfLibrary("torchvision", "resnet18")),
        ("torchvision:r3d_18", OfLibrary("torchvision", "r3d_18")),
        ("timm:resnet18.a1_in1k", OfLibrary("timm", "resnet18.a1_in1k")),
        ("hf:a/folder", OfLibrary("hf", "a/folder")),
        ("a.b:build", OfModule("a.b", "build")),
        ("a/net.py", OfFile("a/net.py", "build")),
    ],
)
def test_a_name_says_where_the_model_comes_from(name: str, parsed: ModelName) -> None:
    assert parse_model(name) == parsed
    assert is_own(name) == isinstance(parsed, (OfModule, OfFile))


def test_torchvision_by_name_has_the_models_of_all_tasks() -> None:
    others = {n for n in torchvision.models.list_models() if not n.startswith("quantized_")}
    assert set(torchvision_names(classifies=False)) == others
    check_model("torchvision:fasterrcnn_resnet50_fpn", IMAGES)
    message = r"unknown --model 'torchvision:fcn_resnet5'; nearest: fcn_resnet50"
    with pytest.raises(ConfigError, match=message):
        check_model("torchvision:fcn_resnet5", IMAGES)
    with pytest.raises(ConfigError, match=r"use torchvision:fcn_resnet50, with a recipe"):
        check_model("fcn_resnet50", IMAGES)


def test_timms_names_are_those_that_timm_itself_lists() -> None:
    timm = pytest.importorskip("timm", reason="the extra timm is not installed")
    assert timm_names() == sorted(timm.list_models())
    check_model("timm:resnet18.a1_in1k", IMAGES)
    check_model("timm:vit_base_patch16_224_in21k", IMAGES)  # one of its older names
    with pytest.raises(ConfigError, match=r"unknown --model 'timm:resnet188'; nearest: resnet18"):
        check_model("timm:resnet188", IMAGES)
    with pytest.raises(ConfigError, match=r"timm has it: use timm:convnextv2_tiny"):
        check_model("convnextv2_tiny", IMAGES)


@pytest.mark.parametrize(("name", "extra"), [("timm:resnet18", "timm"), ("hf:.", "hf")])
def test_a_missing_package_is_named_with_its_extra(
    name: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    (package,) = package_behind(name)
    message = rf"--model '{name}' needs the package {package}.*pip install 'bundlerun\[{extra}\]'"
    with pytest.raises(ConfigError, match=message):
        check_model(name, IMAGES)
    assert package_behind("resnet18") == ()


def test_a_folder_of_transformers_needs_its_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.machinery.ModuleSpec("transformers", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    with pytest.raises(ConfigError, match=r"no such folder; give a local one with config.json"):
        check_model(f"hf:{tmp_path}/none", IMAGES)
    with pytest.raises(ConfigError, match=r"the folder has no config.json; give the folder that"):
        check_model(f"hf:{tmp_path}", IMAGES)
    config = tmp_path / "config.json"
    for text, told in (("{no", "cannot be read as JSON"), ('{"a": 1}', "names no model_type")):
        config.write_text(text)
        with pytest.raises(ConfigError, match=told):
            check_model(f"hf:{tmp_path}", IMAGES)
    config.write_text('{"model_type": "vit"}')
    check_model(f"hf:{tmp_path}", IMAGES)


def test_a_module_is_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "mypackage" / "net.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path)
    check_model("mypackage.net:build", IMAGES)
    spec = find_module("mypackage.net")
    assert spec is not None
    assert spec.origin == str(tmp_path / "mypackage" / "net.py")
    assert find_module("__main__") is None or "__main__" in sys.modules
    with pytest.raises(ConfigError, match=r"finds no module 'mypackage.none', neither in the curr"):
        check_model("mypackage.none:build", IMAGES)
    with pytest.raises(ConfigError, match=r"finds no module 'tim'.*; nearest: timm:; or"):
        check_model("tim:resnet18", IMAGES)
    with pytest.raises(ConfigError, match=r"names no function; write mypackage.net:build"):
        check_model("mypackage.net:", IMAGES)


@pytest.mark.parametrize("name", ["resnet19", "timm:resnet19", "torchvision:fcn", "nowhere:build"])
def test_torch_is_not_imported_for_it(name: str) -> None:
    code = (
        "import sys; from bundlerun.launcher.cli import main; "
        f"assert main(['run', '--model={name}', '--run-dir=x', 'synthetic']) == 2; "
        "assert not {'torch', 'torchvision', 'timm', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("--model")) == (0, 1), done.stderr
