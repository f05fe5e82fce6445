"""Runs each case in a process of its own, with a limit; all of them within a budget.

    this process     starts | reads findings as they come        | kills what is left | next case
    the case         imports torch, measures, writes findings    |ends, hangs, crashes|

A case that hangs costs its limit and a line that says so; what it found before counts.
"""

from __future__ import annotations

import importlib.util
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.finding import Finding
from benchmarks.gpu.listed import Case
from benchmarks.gpu.marked import VARIABLE, end_marked
from benchmarks.gpu.report import Report
from bundlerun.launcher.run_folder.files import SHARED_MEMORY

ROOT = Path(__file__).resolve().parents[2]
BYTECODE = ROOT / "build" / "bytecode"
"""Gets compiled files of libraries that have none."""
EXIT_NO_GPU = 3
"""How `ready` says that there is none."""
_ENDING_S = 10.0
"""How long the processes of a case may take to go once they are killed."""
_LEAST_S = 3.0
"""With less time left a case is not begun: it could not even import torch."""
_LAST_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """Of one case, removed after it. `memory` is in memory where there is such a folder."""

    disk: Path
    memory: Path


Command = Callable[[Case, int, Folders], Sequence[str]]
"""Gives the command of a case, which writes findings to the descriptor."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs cases.

    Args:
        report: gets what they find.
        command: gives the command of a case.
        budget_s: for all cases together, seconds.
        environ: of the cases.
    """

    report: Report
    command: Command
    budget_s: float
    environ: Mapping[str, str]

    def run(self, cases: Sequence[Case]) -> None:
        """Runs the cases one after the other, as far as the budget goes."""
        deadline = time.monotonic() + self.budget_s
        for case in cases:
            left_s = deadline - time.monotonic()
            if left_s < _LEAST_S:
                self.report.add(
                    Finding(case=case.name, what=case.what, measured="not run: time", ok="not run")
                )
            else:
                self.run_one(case, min(case.limit_s, left_s))

    def run_one(self, case: Case, limit_s: float) -> int | None:
        """Runs one case; its exit code, None where it reached its limit."""
        start = time.monotonic()
        num_before = len(self.report.findings)
        with _folders() as folders:
            code = self._followed(case, folders, start + limit_s)
        self.report.took(case.name, time.monotonic() - start)
        if code is None:
            self._fails(case, "its end", f"stopped at its limit of {limit_s:.0f} s")
        elif code not in (0, EXIT_NO_GPU):
            self._fails(case, "its end", _end_in_words(code))
        elif code == 0 and len(self.report.findings) == num_before:
            self._fails(case, "its end", "it found nothing")
        return code

    def _followed(self, case: Case, folders: Folders, deadline: float) -> int | None:
        mark = f"{case.name}-{os.getpid()}-{os.urandom(8).hex()}"
        reading, writing = os.pipe()
        try:
            with self.report.log.open("ab") as log:
                log.write(f"--- {case.name}\n".encode())
                log.flush()
                process = subprocess.Popen(
                    self.command(case, writing, folders),
                    cwd=ROOT,
                    env={**self.environ, VARIABLE: mark},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=(writing,),
                    start_new_session=True,
                )
            try:
                self._read(reading, process.pid, deadline)
                code = process.poll()
            finally:
                left = end_marked(mark, _ENDING_S)
                process.kill()  # it has the mark, too: this only makes sure of the wait
                process.wait()
        finally:
            os.close(writing)
            os.close(reading)
        if left:
            self._fails(case, "what it left", f"processes {left} did not end")
        return code

    def _read(self, reading: int, pid: int, deadline: float) -> None:
        """Takes findings until the process ends, or its time does."""
        # Not until the pipe is closed: processes that the case has left hold it, too.
        ended = os.pidfd_open(pid)
        text = b""
        try:
            while (left_s := deadline - time.monotonic()) > 0:
                ready, _, _ = select.select([reading, ended], [], [], left_s)
                if reading in ready:
                    *lines, text = (text + os.read(reading, 1 << 16)).split(b"\n")
                    for line in lines:
                        self.report.add(Finding.from_text(line.decode()))
                elif ended in ready:
                    return
        finally:
            os.close(ended)

    def _fails(self, case: Case, what: str, measured: str) -> None:
        for line in self.report.log.read_text(errors="replace").splitlines()[-_LAST_LINES:]:
            print(f"    {line}", flush=True)
        self.report.add(
            Finding(case=case.name, what=what, measured=measured, wanted="a good end", ok="NO")
        )


def own_command(case: Case, descriptor: int, folders: Folders, *, is_stand_in: bool) -> list[str]:
    """The command of a case of `benchmarks.gpu.cases`."""
    return [
        sys.executable,
        "-m",
        "benchmarks.gpu.child",
        case.name,
        f"--descriptor={descriptor}",
        f"--disk={folders.disk}",
        f"--memory={folders.memory}",
        *(["--stand-in"] if is_stand_in else []),
    ]


def own_environ(environ: Mapping[str, str], *, is_stand_in: bool) -> dict[str, str]:
    """The environment of the cases: nobody starts CUDA by looking for it, and no job is around."""
    found = {name: value for name, value in environ.items() if name not in ("RANK", "WORLD_SIZE")}
    found["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    found["PYTHONUNBUFFERED"] = "1"
    if not _has_bytecode("torch"):
        # Some images leave it out: each process would compile all libraries anew, half a minute.
        found.pop("PYTHONDONTWRITEBYTECODE", None)
        found.setdefault("PYTHONPYCACHEPREFIX", str(BYTECODE))
    if is_stand_in:
        found["CUDA_VISIBLE_DEVICES"] = ""
        # Several threads that wait for each other take long on a small machine that is busy.
        found["OMP_NUM_THREADS"] = "1"
    return found


def _has_bytecode(name: str) -> bool:
    """Whether a library has its compiled files next to it."""
    spec = importlib.util.find_spec(name)
    return spec is None or spec.cached is None or Path(spec.cached).exists()


@contextmanager
def _folders() -> Iterator[Folders]:
    in_memory = str(SHARED_MEMORY) if os.access(SHARED_MEMORY, os.W_OK) else None
    # What is still written by a process that would not end is left.
    with (
        tempfile.TemporaryDirectory(prefix="bundlerun-gpu-", ignore_cleanup_errors=True) as disk,
        tempfile.TemporaryDirectory(
            prefix="bundlerun-gpu-", dir=in_memory, ignore_cleanup_errors=True
        ) as memory,
    ):
        yield Folders(disk=Path(disk), memory=Path(memory))


def _end_in_words(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
