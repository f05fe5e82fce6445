"""Where a forked worker begins: it becomes the process that torchrun would have started."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from launcher.board import Board
from launcher.errors import EXIT_FAILED
from launcher.fork_server import die_with_parent

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""torch's variable: where the first failure of a worker is written."""

WORKER_LOG = "worker.log"

AFTERMATH_S = 0.25
"""How long a failed worker stays, seconds: two looks of the agent at its default interval.

Most failures follow another one: a killed rank breaks its peers' connections, and all are gone
before the agent looks. So it sees the killed one first, and ends the others while they wait.
"""


class Tee:
    """A console stream whose text is kept in a log file too.

    torch's `tee` redirects to a file and has the agent copy lines with a prefix: the worker then
    sees no terminal, and a progress bar becomes a flood of lines. Here the worker keeps its console
    (`isatty`, `fileno`), and what is rewritten on the spot, which begins with a carriage return,
    stays out of the log. Output of C code goes to the console only.
    """

    def __init__(self, console: TextIO, log: TextIO) -> None:
        self._console = console
        self._log = log

    def write(self, text: str) -> int:
        """Writes `text` to both."""
        if not text.startswith("\r"):
            self._log.write(text)
        return self._console.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._console, name)


def run_worker(module: str, argv: Sequence[str], server_pid: int, keep_log: bool) -> None:
    """Calls `main(argv)` of `module` and exits with its code.

    Args:
        module: dotted name, as in `python -m`.
        argv: the command line without the program.
        server_pid: the fork server that this process came from.
        keep_log: copy what it prints to its log file.

    Raises:
        SystemExit: the code is not 0.
    """
    from torch.distributed.elastic.multiprocessing.errors import record

    die_with_parent(server_pid)
    # A terminal sends it to all; what becomes of the ranks is the agent's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.argv = [module, *argv]
    error_file = os.environ.get(ERROR_FILE, "")
    if keep_log and error_file:
        log = Path(error_file).with_name(WORKER_LOG).open("a", buffering=1, encoding="utf-8")
        sys.stdout = Tee(sys.stdout, log)
        sys.stderr = Tee(sys.stderr, log)
    try:
        code = record(_main)(module, argv)
    except Exception:
        _tell_agent(EXIT_FAILED)
        time.sleep(AFTERMATH_S)
        raise
    if code:
        _tell_agent(code)
        if error_file:
            Path(error_file).write_text(_exit_note(code), encoding="utf-8")
        sys.exit(code)


def _tell_agent(code: int) -> None:
    """For programs that do not keep a row of the board themselves."""
    board = Board.open(os.environ)
    row = board.row(int(os.environ.get("LOCAL_RANK", "0"))) if board else None
    if row is not None:
        if not row.pid:
            row.enter(os.getpid(), time.monotonic_ns())
        row.end(code)


def _main(module: str, argv: Sequence[str]) -> int:
    return int(importlib.import_module(module).main(list(argv)) or 0)


def _exit_note(code: int) -> str:
    """An orderly end with an exit code, in the form of torch's error files."""
    extra = {"py_callstack": "", "timestamp": str(int(time.time()))}
    return json.dumps({"message": {"message": "", "errorCode": code, "extraInfo": extra}})
