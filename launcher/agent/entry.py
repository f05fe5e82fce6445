"""Where a forked worker begins: it becomes the process that torchrun would have started."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED
from bundlerun.launcher.ranks.board import AFTERMATH_S, Board, Row
from bundlerun.launcher.ranks.fault import fault_of
from bundlerun.launcher.ranks.fork_server import die_with_server
from bundlerun.launcher.ranks.rank_signals import AgentsWord, end_process, hear_agent

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
"""torch's variable: where the first failure of a worker is written."""

WORKER_LOG = "worker.log"

NO_BEAT_YET_NS = 1 << 62
"""In the future: nobody is silent who may not know that there is something to say."""


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


def run_worker(module: str, argv: Sequence[str], agent_pid: int, keep_log: bool) -> None:
    """Calls `main(argv)` of `module` and exits with its code.

    Args:
        module: dotted name, as in `python -m`.
        argv: the command line without the program.
        agent_pid: the process whose fork server this one came from.
        keep_log: copy what it prints to its log file.

    Raises:
        SystemExit: the code is not 0.
    """
    from torch.distributed.elastic.multiprocessing.errors import record

    # First: from here on this process cannot outlive its agent.
    die_with_server(agent_pid)
    board = Board.open(os.environ)
    row = _own_row(board)
    if row is not None:
        row.enter(os.getpid(), NO_BEAT_YET_NS)  # a rank that dies from here on has been one
    hear_agent(AgentsWord.of_rank(board, os.environ), partial(_end, row))
    sys.argv = [module, *argv]
    error_file = os.environ.get(ERROR_FILE, "")
    if keep_log and error_file:
        # By these files the agent finds which rank failed first (`failure.first_story`).
        log = Path(error_file).with_name(WORKER_LOG).open("a", buffering=1, encoding="utf-8")
        sys.stdout = Tee(sys.stdout, log)
        sys.stderr = Tee(sys.stderr, log)
    try:
        code = record(_main)(module, argv)
    except Exception as exc:
        if row is not None:
            row.fail(fault_of(exc, row.step))
            row.end(EXIT_FAILED)
        # The agent is to see the first failure before those that follow it.
        time.sleep(AFTERMATH_S)
        raise
    if row is not None:
        row.end(code or EXIT_DONE)
    if code:
        if error_file:
            Path(error_file).write_text(_exit_note(code), encoding="utf-8")
        sys.exit(code)


def _own_row(board: Board | None) -> Row | None:
    return board.row(int(os.environ.get("LOCAL_RANK", "0"))) if board else None


def _end(row: Row | None) -> None:
    """By the agent's word, before this process hears it in its own way."""
    if row is not None:
        row.end(128 + signal.SIGTERM)
    end_process(128 + signal.SIGTERM)


def _main(module: str, argv: Sequence[str]) -> int:
    return int(importlib.import_module(module).main(list(argv)) or 0)


def _exit_note(code: int) -> str:
    """An orderly end with an exit code, in the form of torch's error files."""
    extra = {"py_callstack": "", "timestamp": str(int(time.time()))}
    return json.dumps({"message": {"message": "", "errorCode": code, "extraInfo": extra}})
