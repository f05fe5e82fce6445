from __future__ import annotations

import importlib
import json
import os
import py_compile
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.gpu import runner as runner_module
from benchmarks.gpu.finding import Finding
from benchmarks.gpu.listed import Case
from benchmarks.gpu.marked import VARIABLE, end_marked, marked
from benchmarks.gpu.report import FILE, Report
from benchmarks.gpu.runner import ROOT, Folders, Runner
from bundlerun.launcher.process import kernel_state
from tests.waiting import wait_until

FIND = "from benchmarks.gpu.finding import Finding; import os, sys, time, signal\n"
FIND += "def find(what): os.write(FD, (Finding(case='T', what=what, measured='1').text() + '\\n')"
FIND += ".encode())\n"
HANG = "find('before'); signal.pause()"


def command_of(script: str, case: Case, descriptor: int, folders: Folders) -> Sequence[str]:
    return [sys.executable, "-c", f"FD = {descriptor}; FOLDER = {str(folders.disk)!r}\n{script}"]


def runner(tmp_path: Path, scripts: dict[str, str], budget_s: float = 60.0) -> Runner:
    def command(case: Case, descriptor: int, folders: Folders) -> Sequence[str]:
        return command_of(FIND + scripts[case.name], case, descriptor, folders)

    report = Report(tmp_path / "out", is_stand_in=True)
    return Runner(report, command, budget_s, dict(os.environ))


def test_libraries_without_compiled_files_are_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"PYTHONDONTWRITEBYTECODE": "1"}
    # Not the torch that is installed: that may come without compiled files, too.
    (tmp_path / "torch").mkdir()
    source = tmp_path / "torch" / "__init__.py"
    source.touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    importlib.invalidate_caches()
    compiled = Path(py_compile.compile(str(source), doraise=True) or "")
    assert runner_module.own_environ(given, is_stand_in=False).items() >= given.items()
    compiled.unlink()
    found = runner_module.own_environ(given, is_stand_in=False)
    assert found["PYTHONPYCACHEPREFIX"] == str(runner_module.BYTECODE)
    assert not given.keys() & found.keys()


def case(name: str, limit_s: float = 30.0) -> Case:
    return Case(name, "none", f"what {name} shows", limit_s)


def kept(tmp_path: Path) -> list[dict[str, object]]:
    found = json.loads((tmp_path / "out" / FILE).read_text())
    return list(found["findings"])


def test_what_a_case_finds_is_told_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = runner(tmp_path, {"A": "find('one'); find('two')"})
    found.run([case("A")])
    assert [each["what"] for each in kept(tmp_path)] == ["one", "two"]
    assert capsys.readouterr().out.splitlines() == ["T one | 1 | - | -", "T two | 1 | - | -"]
    assert found.report.is_good


def test_a_case_that_hangs_costs_its_limit_and_the_next_one_runs(tmp_path: Path) -> None:
    found = runner(tmp_path, {"A": HANG, "B": "find('after')"})
    found.run([case("A", 3.0), case("B")])
    before, stopped, after = kept(tmp_path)
    assert (before["what"], after["what"]) == ("before", "after")
    assert (stopped["measured"], stopped["ok"]) == ("stopped at its limit of 3 s", "NO")
    assert not found.report.is_good


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("raise ValueError('on purpose')", "ended with code 1"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("pass", "it found nothing"),
    ],
)
def test_a_case_that_crashes_is_a_line_and_the_next_one_runs(
    script: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runner(tmp_path, {"A": script, "B": "find('after')"}).run([case("A"), case("B")])
    crashed, after = kept(tmp_path)
    assert (crashed["measured"], crashed["ok"], after["what"]) == (words, "NO", "after")
    if "on purpose" in script:
        assert "ValueError: on purpose" in capsys.readouterr().out


def test_processes_that_a_case_leaves_are_ended(tmp_path: Path) -> None:
    # In a session of its own, and no child of the case any more; it holds the pipe as well.
    left = "pid = os.fork()\nif not pid:\n os.setsid()\n if os.fork(): os._exit(0)\n"
    left += " open(sys.argv[0] and FOLDER + '/../left', 'w').write(str(os.getpid()))\n"
    left += " find('left'); signal.pause()\n"
    left = left.replace("FOLDER + '/../left'", repr(str(tmp_path / "left")))
    runner(tmp_path, {"A": left + "os.waitpid(pid, 0)\nos.read(os.pipe()[0], 1)"}).run(
        [case("A", 2.0)]
    )
    assert kernel_state(int((tmp_path / "left").read_text())) in "XZ"
    assert [each["what"] for each in kept(tmp_path)] == ["left", "its end"]


def test_cases_that_the_budget_has_no_time_for_are_told(tmp_path: Path) -> None:
    found = runner(tmp_path, {"A": HANG}, budget_s=4.0)
    start = time.monotonic()
    found.run([case("A"), case("B"), case("C")])
    assert time.monotonic() - start < 10  # cut to what was left, not to its own limit of 30 s
    _, stopped, *others = kept(tmp_path)
    assert stopped["measured"] == "stopped at its limit of 4 s"
    assert [(each["case"], each["measured"], each["ok"]) for each in others] == [
        ("B", "not run: time", "not run"),
        ("C", "not run: time", "not run"),
    ]
    assert not found.report.is_good


def test_a_run_that_is_killed_leaves_a_whole_file_and_no_case(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "from pathlib import Path; import sys\n"
        "from tests.unit.benchmarks.gpu.test_runner import HANG, case, runner\n"
        "own = 'from bundlerun.launcher.process import follow_parent; follow_parent()\\n'\n"
        f"path = Path({str(tmp_path)!r})\n"
        'hang = own + f\'open({str(path / "pid")!r}, "w").write(str(os.getpid()))\\n\' + HANG\n'
        "runner(path, {'A': \"find('first')\", 'B': hang}).run([case('A'), case('B')])\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        path = tmp_path / "out" / FILE
        wait_until(lambda: path.exists() and len(kept(tmp_path)) == 2, "both have found something")
    finally:
        process.kill()
        process.wait()
    assert [each["what"] for each in kept(tmp_path)] == ["first", "before"]
    pid = int((tmp_path / "pid").read_text())
    wait_until(lambda: kernel_state(pid) in "XZ", "the case ends with the run")


def test_only_processes_with_the_mark_are_ended() -> None:
    scripts = {name: subprocess.Popen(
        ["sleep", "60"], env={**os.environ, VARIABLE: name}
    ) for name in ("mine", "mine-too")}  # fmt: skip
    try:
        wait_until(lambda: list(marked("mine")) == [scripts["mine"].pid])
        assert end_marked("mine", 10.0) == []
        assert scripts["mine"].wait(10) == -signal.SIGKILL
        assert scripts["mine-too"].poll() is None
    finally:
        for process in scripts.values():
            process.kill()
            process.wait()


def test_a_finding_reads_back_as_it_was() -> None:
    finding = Finding(case="G1", what="a | b", measured="3 s", wanted="<= 4 s", ok="yes", value=3.0)
    assert Finding.from_text(finding.text()) == finding
    assert "\n" not in finding.text()
