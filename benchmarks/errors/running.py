"""Runs one case."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cluster.waiting import comes_true
from benchmarks.errors.case import Case

LIMIT_S = 180.0
SETTINGS = {"BUNDLERUN_DEVICES": "cpu", "BUNDLERUN_SLOTS": "2"}
"""Of all cases; the shown lines are without."""
_ROOT = Path(__file__).resolve().parents[2]
_END_S = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a case.

    text: the line of the output that tells it; the last line where none does.
    code: the exit code; None: it had to be ended.
    seconds: from the command to its end. processor_s: of all its processes.
    num_steps: of training, before it ended. has_traceback: whether one was printed.
    """

    text: str
    code: int | None
    seconds: float
    processor_s: float
    num_steps: int
    has_traceback: bool

    def fault(self, case: Case) -> str:
        """What is not as wanted, in words; nothing where all is."""
        found = []
        if self.code != case.code:
            found.append(f"exit code {self.code}, not {case.code}")
        if case.told not in self.text:
            found.append(f"does not say {case.told!r}")
        if self.num_steps and not case.may_train:
            found.append(f"{self.num_steps} steps were done")
        if self.has_traceback and not case.shows_code:
            found.append("a traceback")
        return "; ".join(found)


def run_case(case: Case, folder: Path) -> Outcome:
    """What a case prints, and how it ends; nothing of it runs on.

    Args:
        case: to run.
        folder: with the files, used by no other case meanwhile.

    Raises:
        RuntimeError: what the case needs could not be made.
    """
    for name in ("runs", "one", "two", "used", "memory"):
        shutil.rmtree(folder / name, ignore_errors=True)
    port = str(_free_port())
    for line in case.before:
        made = _started(case, line.replace("{port}", port), folder, folder / "before.log")
        if made.wait(LIMIT_S):
            raise RuntimeError(f"{case.name}: {line} failed: {_text(folder / 'before.log')}")
    with _beside(case, port, folder):
        begin = time.monotonic()
        before = _steps(folder)
        program = _started(case, case.line.replace("{port}", port), folder, folder / "case.log")
        timed_out, usage = _waited(program)
        seconds = time.monotonic() - begin
    output = _text(folder / "case.log")
    lines = [line.strip().replace(str(folder), "FOLDER") for line in output.splitlines()]
    lines = [line for line in lines if line]
    telling = [line for line in lines if case.told in line]
    # An error is said before what became of the run.
    errors = [line for line in telling if line.startswith("error")] or telling
    return Outcome(
        text=(errors or lines[-1:] or [""])[0],
        code=None if timed_out else program.returncode,
        seconds=round(seconds, 2),
        processor_s=round(usage, 2),
        num_steps=max(0, _steps(folder) - before) if not case.beside else 0,
        has_traceback="Traceback (most recent call last)" in output,
    )


def _text(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")


def _started(case: Case, line: str, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    words = shlex.split(line)
    # The programs of this environment, whatever the path says.
    ours = {"bundlerun": [sys.executable, "-m", "bundlerun"], "python": [sys.executable]}
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("BUNDLERUN_", "PET_"))}
    environ |= {"OMP_NUM_THREADS": "1", **SETTINGS}
    environ |= case.environ
    environ = {name: value for name, value in environ.items() if value}
    if "PYTHONPATH" in case.environ:
        environ["PYTHONPATH"] = str(folder / case.environ["PYTHONPATH"])
    with log.open("wb") as file:
        return subprocess.Popen(
            [*ours[words[0]], *words[1:]],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            env=environ,
            cwd=folder,
            start_new_session=True,
        )


def _waited(program: subprocess.Popen[bytes]) -> tuple[bool, float]:
    """Whether it had to be ended, and its processor seconds, children included."""
    ended: list[float] = []

    def is_over() -> bool:
        pid, status, usage = os.wait4(program.pid, os.WNOHANG)
        if pid:
            program.returncode = os.waitstatus_to_exitcode(status)
            ended.append(usage.ru_utime + usage.ru_stime)
        return bool(pid)

    if comes_true(is_over, LIMIT_S, 0.02):
        return False, ended[0]
    _kill(program)
    return True, 0.0


@contextmanager
def _beside(case: Case, port: str, folder: Path) -> Iterator[None]:
    if not case.beside:
        yield
        return
    log = folder / "beside.log"
    program = _started(case, case.beside.replace("{port}", port), folder, log)
    try:
        if case.until and not comes_true(lambda: case.until in _text(log), LIMIT_S, 0.1):
            raise RuntimeError(f"{case.name}: {case.beside} does not begin: {_text(log)}")
        yield
    finally:
        with suppress(ProcessLookupError):
            program.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            program.wait(_END_S)
        _kill(program)


def _kill(program: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
    program.wait()


def _steps(folder: Path) -> int:
    """Steps of training that all histories in a folder have."""
    rows = [
        json.loads(line)
        for file in folder.rglob("metrics.jsonl")
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return sum(row.get("kind") == "step" for row in rows)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port
