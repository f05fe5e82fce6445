"""Forks of a case, which has loaded torch and has not started CUDA: each begins with a fresh GPU.

A fork costs milliseconds and the context, where a process of its own would import torch again.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

from bundlerun.launcher.process import die_with_parent

LIMIT_S = 200.0
"""Longer than any case may take: that limit counts."""


class Fork:
    """A process that does `main` and answers in JSON.

    Args:
        main: what it does.
        environ: changes to its environment, before CUDA starts.
    """

    def __init__(
        self, main: Callable[[], object], environ: Mapping[str, str] | None = None
    ) -> None:
        # What is in the buffers would be printed again by the child.
        sys.stdout.flush()
        sys.stderr.flush()
        self._answer, writing = os.pipe()
        self._is_forgotten = False
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            _work(parent, main, environ or {}, writing)
        os.close(writing)

    def answer(self, limit_s: float = LIMIT_S) -> Any:  # noqa: ANN401
        """What `main` returned; the process is gone then.

        Raises:
            RuntimeError: it ended without an answer, or has none within the limit.
        """
        deadline, data = time.monotonic() + limit_s, b""
        try:
            while select.select([self._answer], [], [], max(0.0, deadline - time.monotonic()))[0]:
                piece = os.read(self._answer, 1 << 16)
                if not piece:
                    break
                data += piece
        finally:
            # It has written all that it will, or nobody waits for it any more.
            self.forget()
        if not data.endswith(b"\n"):
            raise RuntimeError(f"a fork gave no answer within {limit_s:g} s; the log may say why")
        return json.loads(data)

    def forget(self) -> None:
        """Ends the process, if it is still there, and waits until it is gone."""
        if self._is_forgotten:
            return
        self._is_forgotten = True
        os.close(self._answer)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def in_fork(
    main: Callable[[], object],
    environ: Mapping[str, str] | None = None,
    limit_s: float = LIMIT_S,
) -> Any:  # noqa: ANN401
    """What `main` returned in a fork of this process; see `Fork`."""
    return Fork(main, environ).answer(limit_s)


def _work(
    parent: int, main: Callable[[], object], environ: Mapping[str, str], writing: int
) -> None:
    try:
        die_with_parent(parent)
        os.environ.update(environ)
        data = json.dumps(main()).encode() + b"\n"
        while data:
            data = data[os.write(writing, data) :]
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        # Not `sys.exit`: it must not unwind into the caller's code, nor run its handlers.
        os._exit(0)
