from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.commands import completion
from bundlerun.launcher.commands.arguments.completion import SHELLS
from bundlerun.launcher.commands.completion import model_names, run_folders
from bundlerun.launcher.run_folder.paths import RunPaths

needs_library = pytest.mark.skipif(
    importlib.util.find_spec("argcomplete") is None,
    reason="argcomplete is not installed (the extra completion)",
)


def completed(line: str, cwd: Path) -> list[str]:
    """What a shell is told when TAB is pressed at the end of `line`."""
    # As argcomplete's own shell function does it: the answer comes by descriptor 8.
    script = (
        "import os, sys; from bundlerun.launcher.cli import main\n"
        "try: main([])\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)"
    )
    environ = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\013",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(cwd / "answer"),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
    }
    subprocess.run([sys.executable, "-c", script], env=environ, cwd=cwd, timeout=60, check=True)
    return [word.strip() for word in (cwd / "answer").read_text().split("\013") if word]


@needs_library
@pytest.mark.parametrize(
    ("line", "some", "others"),
    [
        ("bundlerun ", {"run", "init", "plan", "status"}, set()),
        ("bundlerun run --lr", {"--lr", "--lr-schedule"}, {"--model"}),
        ("bundlerun run --schedule ", {"1f1b", "zero-bubble"}, {"resnet18"}),
        ("bundlerun run --model resnet1", {"resnet18", "resnet101"}, {"resnet50"}),
        ("bundlerun status runs/", {"runs/a"}, {"runs/file"}),
    ],
)
def test_a_shell_is_told_what_may_come(
    line: str, some: set[str], others: set[str], tmp_path: Path
) -> None:
    RunPaths(tmp_path / "runs/a").checkpoints.mkdir(parents=True)
    (tmp_path / "runs/file").touch()
    found = set(completed(line, tmp_path))
    assert some <= found
    assert not others & found


@needs_library
@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_its_text(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    assert "bundlerun" in shown
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=shown, text=True, check=True, timeout=60)


def test_without_the_library_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(completion, "_LIBRARY", "no_such_package")
    assert main(["completion", "bash"]) == 2
    assert "bundlerun[completion]" in capsys.readouterr().err


def test_models_of_a_library_come_with_its_name() -> None:
    assert "torchvision:raft_large" in model_names("torchvision:ra")
    assert {"resnet18", "timm:", "hf:"} <= set(model_names(""))


def test_runs_are_found_in_runs_and_where_one_has_typed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/a", "other/b"):
        RunPaths(Path(name)).checkpoints.mkdir(parents=True)
    assert run_folders("") == ["other/", "runs/", "runs/a"]
    assert run_folders("other/") == ["other/b"]
    assert run_folders("nowhere/x") == []
