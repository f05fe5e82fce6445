"""Stacks of processes: of this one, and of one that cannot tell them itself.

process        registers once: at SIGUSR2, C code writes the stacks of all its threads to a file
children       inherit that, the file included, as loading processes do
who asks       sends the signal and reads what has come; the interpreter may be busy for ever
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import bundlerun

SIGNAL = signal.SIGUSR2
_ANSWER_S = 0.5
"""How long an answer may take: some milliseconds, unless the processors are busy."""
_LOOK_S = 0.01
_OURS = tuple(
    str(Path(bundlerun.__file__).parent / room) + os.sep
    for room in ("launcher", "workers", "splits", "slurm")
)
_STARTS = ("_bootstrap_inner", "_bootstrap")
"""Functions of Python in which a thread, or a process, begins."""
_AGENT = _OURS[0] + "agent" + os.sep
_LIBRARY = (str(Path(sysconfig.get_paths()["stdlib"])) + os.sep, "<frozen", "<string>")
_THREAD = re.compile(r"^(?:Current thread|Thread) (0x[0-9a-f]+)(.*)")
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')


class Frame(NamedTuple):
    """One call: where it is."""

    file: str
    line: int
    function: str

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.file}:{self.line} ({self.function})"


class Thread(NamedTuple):
    """One thread; its calls, the innermost first."""

    name: str
    frames: tuple[Frame, ...]


def own_threads() -> list[Thread]:
    """Those of this process, its main thread first."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    me = threading.get_ident()
    found = {
        ident: Thread(names.get(ident, hex(ident)), tuple(_frames(frame)))
        for ident, frame in sys._current_frames().items()
        if ident != me
    }
    return [found[ident] for ident in sorted(found, key=lambda ident: ident != main)]


def _frames(frame: object) -> Iterable[Frame]:
    while frame is not None:
        code = frame.f_code  # type: ignore[attr-defined]
        line = frame.f_lineno or 0  # type: ignore[attr-defined]
        yield Frame(code.co_filename, int(line), str(code.co_name))
        frame = frame.f_back  # type: ignore[attr-defined]


def register() -> int:
    """Has this process answer `ask`; the descriptor of the file with the answers."""
    # Of no file system: nothing is left of it, and nothing is full.
    fd = os.memfd_create("bundlerun-stacks")
    os.set_inheritable(fd, False)
    faulthandler.register(SIGNAL, file=fd, all_threads=True, chain=False)
    return fd


def ask(pid: int, answers: Path, limit_s: float = _ANSWER_S) -> list[Thread]:
    """The stacks of a process, its main thread first; none where it does not answer.

    Args:
        answers: the file that the process has registered, through /proc.
    """
    if not _hears(pid):
        return []
    try:
        before = answers.stat().st_size
        os.kill(pid, SIGNAL)
        until, size = time.monotonic() + limit_s, before
        while time.monotonic() < until:
            time.sleep(_LOOK_S)
            now = answers.stat().st_size
            # It comes in many small writes: whole once nothing more has come.
            if before < now == size:
                break
            size = now
        with answers.open("rb") as file:
            file.seek(before)
            return parsed(file.read().decode(errors="replace"))
    except OSError:
        return []


def _hears(pid: int) -> bool:
    """Whether the process handles the signal, which ends one that does not."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
        return bool(int(caught.split()[1], 16) >> (SIGNAL - 1) & 1)
    return False


def parsed(text: str) -> list[Thread]:
    """What Python's faulthandler has written, the main thread, its last, first."""
    found: list[Thread] = []
    name = ""
    frames: list[Frame] = []
    for line in text.splitlines():
        if head := _THREAD.match(line):
            if frames:
                found.append(Thread(name, tuple(frames)))
            name, frames = head[1], []
        elif call := _FRAME.match(line):
            frames.append(Frame(call[1], int(call[2]), call[3]))
    if frames:
        found.append(Thread(name, tuple(frames)))
    return found[::-1]


def told_frames(frames: Sequence[Frame]) -> Sequence[Frame]:
    """Those that say something to people: without what started the process, or the thread."""
    begins = (i for i, f in enumerate(frames) if f.function in _STARTS or f.file.startswith(_AGENT))
    return frames[: next(begins, len(frames))]


def told_place(frames: Sequence[Frame]) -> Frame | None:
    """The call that says most of where a thread is: the user's innermost one, else the innermost.

    That of a library that the user has chosen comes before torch's, ours and Python's.
    """
    own = [f for f in frames if not f.file.startswith((*_OURS, *_LIBRARY)) and not _is_torch(f)]
    users = [f for f in own if "site-packages" not in f.file]
    rest = [f for f in frames if not f.file.startswith(_LIBRARY)]
    return next(iter([*users, *own, *rest, *frames]), None)


def is_users(frame: Frame) -> bool:
    """Whether it is neither of ours, nor of torch, nor of Python."""
    return not frame.file.startswith((*_OURS, *_LIBRARY)) and not _is_torch(frame)


def _is_torch(frame: Frame) -> bool:
    # Paths of a process that is not asked where its torch is.
    parts = Path(frame.file).parts
    return "torch" in parts or "torchvision" in parts


def kernel_place(pid: int) -> str:
    """Where in the kernel a process waits; empty where that is not told."""
    with suppress(OSError):
        found = Path(f"/proc/{pid}/wchan").read_text().strip()
        return "" if found == "0" else found
    return ""


def children_of(pid: int) -> list[int]:
    """Processes that a process has started."""
    found: set[int] = set()
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):
                found |= set(map(int, (task / "children").read_text().split()))
    return sorted(found)
