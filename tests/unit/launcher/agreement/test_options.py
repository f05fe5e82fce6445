from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.agreement.options import keep_options, read_like
from bundlerun.launcher.cli import main
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.run_folder.paths import RunPaths


@pytest.fixture
def earlier(tmp_path: Path) -> RunPaths:
    """The folder of a run with options of its own."""
    paths = RunPaths(tmp_path / "earlier")
    paths.root.mkdir()
    train = TrainConfig(
        data="synthetic", lr=0.25, shape=Shape((2, 1)), batch_size=64, validate=False,
        run_dir=str(paths.root), cut=("layer3",), microbatch_size=16,
    )  # fmt: skip
    launch = LaunchConfig(devices="cpu", slots=3, node_name="n", rdzv_id="once")
    sources = dict.fromkeys(("lr", "shape", "batch_size", "validate", "cut"), "option")
    keep_options(
        paths,
        "n",
        Resolved(train, {"data": "option", **sources, "microbatch_size": "default"}),
        Resolved(launch, dict.fromkeys(("devices", "slots", "node_name", "rdzv_id"), "option")),
    )
    paths.config.write_text(train.to_json())
    paths.terms.write_text("{}")  # a mark that a run has begun
    return paths


def planned(words: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["plan", "--json", *shlex.split(words)]) == 0
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    return document


def test_a_run_is_repeated_with_what_is_given_over_it(
    earlier: RunPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLERUN_SEED", "3")
    found = planned(f"--like {shlex.quote(str(earlier.root))} --lr 0.5", capsys)
    source = f"--like {earlier.root}"
    config = found["config"]
    assert config["lr"] == {"value": 0.5, "source": "option"}
    assert config["seed"] == {"value": 3, "source": "environment BUNDLERUN_SEED"}
    assert config["data"] == {"value": "synthetic", "source": source}
    assert config["shape"]["source"] == source
    assert (config["batch_size"]["value"], config["microbatch_size"]["value"]) == (64, 16)
    assert config["validate"] == {"value": False, "source": source}
    assert config["epochs"]["source"] == "default"
    assert found["launch"]["slots"] == {"value": 3, "source": source}
    # It begins anew: in a folder, and under a name, of its own.
    assert config["run_dir"]["value"] != str(earlier.root)
    assert found["launch"]["rdzv_id"]["source"] == "default"
    assert found["launch"]["node_name"]["source"] == "default"


def test_what_follows_from_another_option_is_left_with_it(
    earlier: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    found = planned(f"--like {earlier.root} --shape 1,1 --batch-size 30", capsys)["config"]
    assert found["cut"]["source"] == "default"
    assert found["microbatch_size"]["source"] == "default"
    assert found["lr"]["value"] == 0.25


def test_a_file_of_options_goes_over_an_earlier_run(
    earlier: RunPaths, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "o.toml"
    file.write_text("lr = 0.125\n")
    found = planned(f"--like {earlier.root} --config {file}", capsys)["config"]
    assert found["lr"] == {"value": 0.125, "source": str(file)}


def test_an_option_of_another_version_is_told_and_left_out(
    earlier: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    config = json.loads(earlier.config.read_text()) | {"learning_rate": 1}
    earlier.config.write_text(json.dumps(config))
    assert main(["plan", "--like", str(earlier.root)]) == 0
    assert "option 'learning_rate' is none of this version" in caplog.text


def test_without_the_options_of_nodes_those_of_training_are_repeated(earlier: RunPaths) -> None:
    earlier.node_options("n").write_text("torn")
    like = read_like(earlier, "n", {})
    assert like.train["lr"][1] == 0.25
    assert not like.launch


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_what_is_no_run_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["run", "--dry-run", "--like", str(tmp_path / name)]) == 2
    assert "give" in capsys.readouterr().err
