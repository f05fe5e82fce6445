from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu import child
from benchmarks.gpu.listed import CASES, READY, Case, chosen
from benchmarks.gpu.runner import ROOT


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "gpu", *options],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "G99"), "no case 'G99'; choose from G0"),
        (("--budget-s", "-1"), "--budget-s -1 is no time"),
        (("--out", "/dev/null/x"), "cannot write to --out '/dev/null/x'"),
        (("--stand",), "unrecognized arguments: --stand"),
    ],
)
def test_bad_input_is_one_line_and_code_2(options: tuple[str, ...], words: str) -> None:
    done = run(*options)
    assert done.returncode == 2
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_without_a_gpu_the_stand_in_is_named(tmp_path: Path) -> None:
    done = run("--out", str(tmp_path))
    assert done.returncode == 2
    assert "torch can use no GPU here; --stand-in" in done.stderr.splitlines()[-1]


def test_the_program_around_the_cases_does_not_load_torch() -> None:
    script = "import sys, benchmarks.gpu.command; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


def test_every_case_has_a_module_and_every_module_is_a_case() -> None:
    modules = {path.stem for path in (ROOT / "benchmarks" / "gpu" / "cases").glob("[a-z]*.py")}
    assert {f"cases.{name}" for name in modules} == {case.module for case in CASES}
    assert (ROOT / "benchmarks" / "gpu" / f"{READY.module}.py").is_file()


def test_the_page_of_the_benchmarks_tells_of_every_case() -> None:
    page = (ROOT / "docs" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (G\d+) \|", page, flags=re.MULTILINE)
    assert rows == [case.name for case in CASES]


def test_cases_are_chosen_by_name_and_keep_their_order() -> None:
    assert chosen([]) == list(CASES)
    names = [case.name for case in CASES]
    assert [case.name for case in chosen([names[1], names[0]])] == names[:2]


def test_a_case_whose_modules_are_missing_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "follow_parent", lambda: None)
    monkeypatch.setattr(child, "CASES", [Case("G0", "none", "what", 1, ("json", "no_such_thing"))])
    path = tmp_path / "found"
    with path.open("wb") as file:
        options = [f"--descriptor={file.fileno()}", f"--disk={tmp_path}", f"--memory={tmp_path}"]
        assert child.main(["G0", *options]) == 0
    assert '"measured": "no module named no_such_thing"' in path.read_text()
    assert '"ok": "cannot run"' in path.read_text()
