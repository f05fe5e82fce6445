"""`bundlerun script`: what it passes on, what it shows, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlerun.launcher.cli import main, our_words
from bundlerun.launcher.plan import SCRIPT_MODULE


def test_what_comes_after_the_file_is_the_programs_own_as_it_is_typed() -> None:
    words = ["script", "--nproc_per_node=2", "train.py", "--my_lr", "1", "--compile", "--run-dir=x"]
    assert our_words(words) == ["script", "--nproc-per-node=2", *words[2:]]
    assert our_words(["run", "--my_lr", "x.py", "--a_b"]) == ["run", "--my-lr", "x.py", "--a-b"]


def test_the_plan_names_the_program_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("raise SystemExit(5)\n")
    words = ["--devices=cpu", "--nproc-per-node=3", "--run-dir=runs/mine", "--dry-run"]
    assert main(["script", *words, "train.py", "--steps", "7"]) == 0
    shown = capsys.readouterr().out
    assert "3 ranks on cpu" in shown
    assert "program      train.py --steps 7" in shown
    assert "run folder   runs/mine" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["nothing.py"], "no such file: 'nothing.py'; give the program"),
        (["--standby", "there.py"], "--standby warms up what bundlerun run does first"),
        (["--nnodes=2", "there.py"], "--nnodes 2 needs --rdzv-endpoint HOST:PORT"),
    ],
)
def test_wrong_usage_is_one_line(
    words: list[str],
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.py").touch()
    assert main(["script", *words]) == 2
    assert text in capsys.readouterr().err


def test_the_module_of_its_ranks_is_there() -> None:
    path = Path(*SCRIPT_MODULE.split(".")).with_suffix(".py")
    assert (Path(__file__).parents[4] / path).is_file()
