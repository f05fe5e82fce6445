"""Programs without the seconds in which Python imports torch: forked from a process that has it.

    tests       Warm: words, environment, output  ->  Program: process id, exit code
                   |
    this file      `-- imports once what our programs do, and has no thread
                         `-- a program: fork(); a session, an environment and a console of its
                             own, then what Python does with `python -m MODULE`, `python FILE`
                             or a script of its environment, down to its end

What such a program does not do is import: tests of that start fresh ones. All have one order of
sets of strings, as one process has chosen it; fresh ones have one each.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.cluster.hosts import enter_network

ROOT = Path(__file__).parents[1]
_LOADED = (
    "torch", "torchvision", "torch.distributed.launcher.api", "bundlerun.workers.train",
    "bundlerun.workers.own.script", "bundlerun.workers.own.bundle",
    "bundlerun.launcher.agent.elastic", "bundlerun.launcher.cli", "benchmarks.faults.places",
)  # fmt: skip
_PACKET_BYTES = 1 << 17
_ROOM = 1 << 15
"""Bytes for the environment of a program, where the kernel shows it."""


class Forked:
    """A program that was forked; as `subprocess.Popen`."""

    def __init__(self, warm: Warm, words: Sequence[str], pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._warm = warm
        self._words = list(words)
        self._ended = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._words, timeout)
        return code

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None:
            ended, _, _ = select.select([self._ended], [], [], timeout_s)
            if ended:
                os.close(self._ended)
                self.returncode = self._warm.ask({"ended": self.pid}, [])
        return self.returncode

    def send_signal(self, sig: int, /) -> None:
        # Until its exit code is asked for, the number is nobody else's.
        if self.poll() is None:
            os.kill(self.pid, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Warm:
    """The process that programs are forked from; it ends with this one, or with `close`."""

    def __init__(self) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environ = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TORCH_CPP_LOG_LEVEL": "ERROR",  # as an agent sets it, before torch is there
            "BUNDLERUN_TEST_ROOM": "x" * _ROOM,
        }
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
                cwd=ROOT, env=environ, stdin=subprocess.DEVNULL, pass_fds=(theirs.fileno(),),
            )  # fmt: skip

    def close(self) -> None:
        self._link.close()
        self._process.wait()

    def ask(self, request: Mapping[str, object], descriptors: Sequence[int]) -> int:
        """What the process answers, a number."""
        socket.send_fds(self._link, [json.dumps(request).encode()], descriptors)
        answer = self._link.recv(_PACKET_BYTES)
        assert answer, f"the process that programs are forked from ended: {self._process.poll()}"
        return int(answer)

    def start(
        self,
        words: Sequence[str],
        /,
        *,
        stdout: IO[bytes] | int,
        stderr: IO[bytes] | int,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        start_new_session: bool = True,
    ) -> Forked:
        """As `subprocess.Popen`; `nsenter --net=PATH` may stand before the program."""
        assert start_new_session
        output = stdout if isinstance(stdout, int) else stdout.fileno()
        errors = stderr if isinstance(stderr, int) else stderr.fileno()
        network = ""
        if words[0] == "nsenter":
            network, words = words[1].removeprefix("--net="), words[2:]
        environ = dict(os.environ if env is None else env)
        request = {"words": list(words), "environ": environ, "network": network}
        request["folder"] = str(cwd or Path.cwd())
        pid = self.ask(request, [output, output if errors == subprocess.STDOUT else errors])
        return Forked(self, words, pid)

    def run(
        self, words: Sequence[str], *, timeout: float, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run`, with all that the program says, as text."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            program = self.start(words, stdout=output, stderr=errors, env=env)
            try:
                code = program.wait(timeout)
            finally:
                program.kill()
            texts = []
            for file in (output, errors):
                file.seek(0)
                texts.append(file.read().decode())
        return subprocess.CompletedProcess(list(words), code, *texts)


# ---------------------------------------------------------------- in the process, and its forks


def serve(link: socket.socket) -> None:
    """Forks programs and tells how they ended, until nobody asks any more."""
    for name in _LOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # forks share these pages as long as no collection writes into them
    while True:
        text, descriptors, _, _ = socket.recv_fds(link, _PACKET_BYTES, 2)
        if not text:
            return
        request = json.loads(text)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            link.send(str(os.waitstatus_to_exitcode(status)).encode())
            continue
        pid = os.fork()
        if pid == 0:
            link.close()
            _settle(request, descriptors)
            _run(request["words"])
            sys.exit()
        for descriptor in descriptors:
            os.close(descriptor)
        link.send(str(pid).encode())


def _settle(request: Mapping[str, object], descriptors: Sequence[int]) -> None:
    """Gives this process what a fresh one would have of its own."""
    os.setsid()
    for own, given in zip((1, 2), descriptors, strict=True):
        os.dup2(given, own)
        os.close(given)
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # noqa: SIM115
        2, "w", buffering=1, errors="backslashreplace", closefd=False
    )
    if request["network"]:
        enter_network(Path(str(request["network"])))
    os.chdir(str(request["folder"]))
    environ = request["environ"]
    assert isinstance(environ, dict)
    os.environ.clear()
    os.environ.update(environ)
    _show_environment()


def _show_environment() -> None:
    """Writes the environment where the kernel reads it: tests find what was left behind by it."""
    text = b"".join(b"%b=%b\0" % pair for pair in os.environb.items())
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    start, end = int(fields[47]), int(fields[48])
    assert len(text) < end - start, "the environment is longer than `_ROOM`"
    # Nothing points there any more: what was set since is elsewhere.
    ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def _run(words: Sequence[str]) -> None:
    """What Python does with a command line."""
    # What it runs is loaded already, which it would warn of.
    warnings.filterwarnings("ignore", ".*found in sys.modules", RuntimeWarning)
    program, *rest = words
    if Path(program).name.startswith("python"):
        if rest[0] == "-m":
            sys.argv = rest[1:]
            runpy.run_module(rest[1], run_name="__main__", alter_sys=True)
            return
        program, *rest = rest
    sys.argv = [program, *rest]
    runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as own:
        serve(own)
