"""An unknown model is told before anything is imported."""

from __future__ import annotations

import importlib.machinery
import subprocess
import sys
from pathlib import Path

import pytest
import torchvision

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.model_name import check_model, parse_file, torchvision_names

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


def test_torch_is_not_imported_for_it() -> None:
    code = (
        "import sys; from bundlerun.launcher.cli import main; "
        "assert main(['run', '--model=resnet19', '--run-dir=x', 'synthetic']) == 2; "
        "assert not {'torch', 'torchvision'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("unknown --model")) == (0, 1), done.stderr
