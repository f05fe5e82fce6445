from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main


def test_a_plan_takes_the_file_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--model", "resnet34", "-o", "my run.toml"]) == 0
    shown = capsys.readouterr().out
    command = next(line for line in shown.splitlines() if "bundlerun plan" in line)
    assert main([*shlex.split(command)[1:], "--json"]) == 0
    config = json.loads(capsys.readouterr().out)["config"]
    assert config["model"] == {"value": "resnet34", "source": "my run.toml"}
    assert config["data"] == {"value": "synthetic", "source": "my run.toml"}


def test_a_file_that_is_there_stays_but_with_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.toml").write_text("lr = 1\n")
    assert main(["init"]) == 2
    assert "--force" in capsys.readouterr().err
    assert Path("run.toml").read_text() == "lr = 1\n"
    assert main(["init", "--force"]) == 0
    assert "batch-size" in Path("run.toml").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("/nowhere", "no data at"),
        ("--model resnet19", "nearest: resnet1"),
        ("--recipe segmentatoin", "nearest: segmentation"),
        ("-o nowhere/run.toml", "does not exist; make it first"),
    ],
)
def test_bad_input_is_one_line(
    words: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", *shlex.split(words)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())
