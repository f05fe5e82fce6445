"""The batch scripts: those in the repository are the rendered ones, and bash can read them."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.slurm.render import DEFAULTS, Kind, Setting, directive, script, setting

FOLDER = Path(__file__).resolve().parents[3] / "slurm"
WEIRD = ("plain", "a b", "it's", 'a "b"', "$HOME `id` \\ ${x}", "new\nline", "}", "")


@pytest.mark.parametrize("kind", list(Kind))
def test_the_script_in_the_repository_is_the_rendered_one(kind: Kind) -> None:
    file = FOLDER / f"{kind.value}.sbatch"
    assert file.read_text() == script(DEFAULTS[kind]), "run: python -m bundlerun.slurm.render"


@pytest.mark.parametrize("kind", list(Kind))
def test_bash_and_shellcheck_accept_it(kind: Kind) -> None:
    file = FOLDER / f"{kind.value}.sbatch"
    subprocess.run(["bash", "-n", file], check=True, timeout=30)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", file], check=True, timeout=60)


@pytest.mark.parametrize("kind", list(Kind))
def test_what_each_script_relies_on(kind: Kind) -> None:
    text = script(DEFAULTS[kind])
    assert text.startswith("#!/usr/bin/env bash\n")
    for line in ("--requeue", "--open-mode=append", "--signal=B:USR1@120"):
        assert f"#SBATCH {line}\n" in text
    assert ("#SBATCH --no-kill\n" in text) == ("srun --no-kill" in text) == (kind is Kind.BUNDLE)
    # A number of tasks for sbatch would fix the number of nodes at the fewest.
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert not any("--ntasks" in line for line in directives)
    # A directive behind the first command is none.
    assert text.index("set -euo pipefail") > text.rindex("#SBATCH")


def bash(text: str, *words: str, **environ: str) -> str:
    done = subprocess.run(
        ["bash", "-c", text, "script", *words],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


@pytest.mark.parametrize("value", WEIRD)
def test_a_fixed_setting_is_any_text(value: str) -> None:
    line = str(setting("RUN_DIR", value, is_fixed=True))
    assert bash(f'{line}\nprintf %s "$RUN_DIR"', RUN_DIR="other") == value


def test_a_setting_can_come_from_the_environment() -> None:
    line = str(Setting(name="X", default="runs/$JOB", comment=""))
    assert bash(f'{line}\nprintf %s "$X"', JOB="7") == "runs/7"
    assert bash(f'{line}\nprintf %s "$X"', JOB="7", X="a b") == "a b"


def test_options_survive_the_script(tmp_path: Path) -> None:
    """With a Python that prints its arguments in place of ours."""
    python = tmp_path / "my python"
    python.write_text("#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done\n")
    python.chmod(0o755)
    words = [word for word in WEIRD if word]
    base = DEFAULTS[Kind.BUNDLE]
    fixed = tuple(
        replace(each, default=str(python), is_fixed=True) if each.name == "PYTHON" else each
        for each in base.settings
    )
    text = script(replace(base, settings=fixed, words=words))
    printed = bash(text, SLURM_NNODES="5", SLURM_JOB_ID="7", SPARES="1", MIN_NODES="2")
    found = printed.split("\0")[:-1]
    assert found[:3] == ["-m", "bundlerun.slurm.batch", "--requeue-budget=20"]
    assert found[found.index("bundlerun.slurm.node") + 1 :] == [
        "--nnodes=2:4",
        "--run-dir=runs/slurm-7",
        *words,
    ]


@pytest.mark.parametrize("value", ['a"b', "a\nb", "a\\b"])
def test_what_a_directive_cannot_say_is_refused(value: str) -> None:
    with pytest.raises(ValueError, match="--comment"):
        directive("comment", value)


def test_a_directive_with_a_space_is_quoted() -> None:
    assert directive("comment", "a b") == '#SBATCH --comment="a b"'
    assert directive("nodes", "2-4") == "#SBATCH --nodes=2-4"
