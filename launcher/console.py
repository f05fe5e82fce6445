"""What the user of a node reads: lines on stderr, of the agent and of its ranks.

A progress bar is rewritten in place and ends without a line break, and it may be another process's.
So on a terminal every line first wipes what stands there; the bar comes again with its next step.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TextIO

from bundlerun.launcher.terminal import Terminal

_WIPE = "\r\x1b[K"
log = logging.getLogger(__name__)


def noun_for(number: int, noun: str) -> str:
    """A noun as it stands after a number: node, nodes, micro-batches, processes."""
    plural = "es" if noun.endswith(("batch", "ss")) else "s"
    return noun + ("" if number == 1 else plural)


class ConsoleHandler(logging.StreamHandler):  # type: ignore[type-arg] # generic in stubs only
    """Writes records to stderr as they are, never on the line of a progress bar.

    It looks up sys.stderr for each record, as a program may replace that for a while.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.setFormatter(logging.Formatter("%(message)s"))

    @property
    def stream(self) -> TextIO:  # an attribute there
        """Where it writes."""
        return sys.stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one record."""
        with suppress(ValueError, OSError):  # a closed one: what follows says so, once
            # A terminal that cannot draw has no bar either.
            if Terminal.of(self.stream, os.environ).is_live:
                self.stream.write(_WIPE)
        super().emit(record)


def open_console() -> None:
    """Shows the agent's lines on stderr, unless the program has set up logging itself.

    Shown are warnings of the launcher's modules, and everything that is given to `tell`.
    """
    log.setLevel(logging.INFO)
    package = logging.getLogger("bundlerun.launcher")
    if not logging.getLogger().handlers and not package.handlers:
        package.addHandler(ConsoleHandler())


def tell(text: str) -> None:
    """Shows a line to the user of this node."""
    log.info("%s", text)
