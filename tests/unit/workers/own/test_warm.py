"""Ranks that their agent starts again are forks, with all that a rank has of its own."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from bundlerun.launcher.process import AGENT_VARIABLE, agent_pid
from bundlerun.workers import own
from bundlerun.workers.own.warm import loaded
from bundlerun.workers.own.warm.start import _reached, address_of
from tests.waiting import wait_until

ROOT = Path(__file__).parents[4]
AGENT = """
import json, subprocess, sys
ranks = []
for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(ranks[asked].wait(), flush=True)
        continue
    words, environ, folder = asked
    with open(folder + "/output", "ab") as out:
        rank = subprocess.Popen(
            words, env=environ, cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    ranks.append(rank)
    print(rank.pid, flush=True)
"""
RANK = """
import os, runpy, sys
from bundlerun.workers.own.warm.start import begin

def load():
    with open(os.environ["LOADS"], "a") as loads:
        loads.write("once ")
    def program(file, arguments):
        sys.argv = [file, *arguments]
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as end:
            return int(end.code)
        return 0
    return program

begin(sys.argv[1:], load)
"""
PROGRAM = """
import json, os, signal, sys, time
from bundlerun.launcher.process import agent_pid
def heard(number, _):
    print("heard", number)
    sys.exit(7)
signal.signal(signal.SIGTERM, heard)
facts = {"pid": os.getpid(), "parent": os.getppid(), "agent": agent_pid(), "folder": os.getcwd(),
         "word": os.environ["WORD"], "argv": sys.argv[1:], "cpus": sorted(os.sched_getaffinity(0))}
with open("facts.new", "w") as file:
    json.dump(facts, file)
os.rename("facts.new", "facts")
print("here")
if sys.argv[1] == "wait":
    time.sleep(120)
if sys.argv[1] == "fail":
    raise KeyError("no such word")
sys.exit(int(sys.argv[1]))
"""


class Agent:
    """A process that starts ranks, as torchrun does."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.process = subprocess.Popen(
            [sys.executable, "-c", AGENT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        (folder / "program.py").write_text(PROGRAM)

    def _ask(self, asked: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments: str) -> tuple[int, dict[str, Any]]:
        """Starts a rank; its process, and what the program says of itself."""
        folder = self._folder / f"start{self._count}"
        folder.mkdir()
        own = {"LOADS": str(self._folder / "loads"), "WORD": f"of start {self._count}"}
        words = [sys.executable, "-c", RANK, str(self._folder / "program.py"), *arguments]
        environ = {**os.environ, **own, "PYTHONPATH": str(ROOT), "LOCAL_RANK": "0"}
        pid = self._ask([words, environ, str(folder)])
        self._count += 1
        wait_until((folder / "facts").exists, "the program has not come")
        return pid, json.loads((folder / "facts").read_text())

    def code(self, number: int) -> int:
        """What the n-th start has ended with."""
        return self._ask(number)

    def output(self, number: int) -> str:
        return (self._folder / f"start{number}" / "output").read_text()

    @property
    def loads(self) -> int:
        return (self._folder / "loads").read_text().count("once")


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    started = Agent(tmp_path)
    yield started
    started.process.kill()
    started.process.wait()


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_later_start_is_a_fork_with_a_rank_s_own_and_the_first_one_no_more_than_itself(
    agent: Agent, tmp_path: Path
) -> None:
    first, facts = agent.start("0")
    assert (facts["pid"], facts["parent"]) == (first, agent.process.pid)
    assert agent.code(0) == 0
    second, facts = agent.start("5", "more words")
    assert facts["pid"] != second
    assert facts["parent"] not in (second, agent.process.pid)
    assert facts["agent"] == agent.process.pid
    assert facts["word"] == "of start 1"
    assert facts["argv"] == ["5", "more words"]
    assert facts["folder"] == str(tmp_path / "start1")
    assert facts["cpus"] == sorted(os.sched_getaffinity(0))
    assert agent.code(1) == 5
    agent.start("fail")
    assert agent.code(2) == 1
    assert "KeyError: 'no such word'" in agent.output(2)
    assert agent.loads == 1


def test_signals_reach_the_program_and_its_end_is_that_of_the_rank(agent: Agent) -> None:
    agent.start("0")
    assert agent.code(0) == 0
    told, _ = agent.start("wait")
    os.kill(told, signal.SIGTERM)
    assert agent.code(1) == 7
    assert agent.output(1) == "here\nheard 15\n"
    _, facts = agent.start("wait")
    os.kill(facts["pid"], signal.SIGKILL)
    assert agent.code(2) == -signal.SIGKILL
    killed, facts = agent.start("wait")
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: is_gone(facts["pid"]), "the program outlives who stands for it")


def test_a_server_that_is_killed_ends_its_ranks_and_the_next_start_has_another(
    agent: Agent,
) -> None:
    agent.start("0")
    _, facts = agent.start("wait")
    os.kill(facts["parent"], signal.SIGKILL)
    assert agent.code(1) == -signal.SIGKILL
    wait_until(lambda: is_gone(facts["pid"]))
    again, facts = agent.start("0")
    assert facts["pid"] == again
    assert agent.loads == 2
    later, facts = agent.start("0")
    assert facts["pid"] != later


def test_nothing_outlives_the_agent(agent: Agent) -> None:
    agent.start("0")
    rank, facts = agent.start("wait")
    address = address_of(agent.process.pid)
    agent.process.kill()
    for pid in (rank, facts["pid"], facts["parent"]):
        wait_until(lambda pid=pid: is_gone(pid))
    assert _reached(address) is None


def test_who_stands_for_a_program_has_no_torch() -> None:
    code = "import sys, bundlerun.warm; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_program_s_children_are_not_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AGENT_VARIABLE, f"{os.getpid()}:7")
    assert agent_pid() == 7
    monkeypatch.setenv(AGENT_VARIABLE, f"{os.getppid()}:7")
    assert agent_pid() == os.getppid()


@pytest.mark.parametrize("words", [(), ("--preload=json",), ("-x", "file.py")])
def test_without_a_program_it_is_one_line(words: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bundlerun.warm", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: give the program: python -m bundlerun.warm [--preload=M")
    assert done.stderr.count("\n") == 1


def test_modules_to_keep_are_imported_or_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real ones take seconds to import.
    monkeypatch.setattr(own, "script", ModuleType("script"), raising=False)
    monkeypatch.setattr(loaded, "find_spec", lambda _: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)
    loaded.load(["wave"])
    assert "wave" in sys.modules
    with pytest.raises(SystemExit) as end:
        loaded.load(["json", "no_such_module"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "error: --preload no_such_module: No module named 'no_such_module'\n"
    )
