"""Looks at a run again and again until it has ended: drawn in place, or a line for each change."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TextIO

from bundlerun.launcher.report.status_text import change_line
from bundlerun.launcher.run_folder.status import Status
from bundlerun.launcher.terminal import Terminal

_ENTER = "\x1b[?1049h\x1b[?25l"
"""A screen of its own, without a cursor: what stood on the terminal comes back after it."""
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _TO_LINE_END, _TO_SCREEN_END = "\x1b[H", "\x1b[K", "\x1b[J"
_ENDS = ("done", "stopped", "failed", "lost")
_MOST_WORK = 0.1
"""Share of its time that looking may take, so that a long history slows nothing else."""

Look = Callable[[], Status]
Draw = Callable[[Status, Terminal], Sequence[str]]


def watch(
    look: Look,
    draw: Draw,
    stream: TextIO,
    terminal: Callable[[], Terminal],
    *,
    every_s: float,
    line_every_s: float,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Status:
    """Shows a run until it has ended.

    Args:
        look: reads the status.
        draw: makes lines of it.
        stream: where it is shown.
        terminal: what the stream can show now; a terminal may change its size.
        every_s: seconds between two looks, at least.
        line_every_s: without a terminal: seconds between two lines of which only the step differs.

    Returns:
        The last status.
    """
    if terminal().is_live:
        screen = _Screen(stream, draw, terminal)
        with screen:
            return _until_end(look, screen.show, every_s, sleep, clock)
    lines = _Lines(stream, line_every_s, clock)
    return _until_end(look, lines.show, every_s, sleep, clock)


def _until_end(
    look: Look,
    show: Callable[[Status], None],
    every_s: float,
    sleep: Callable[[float], object],
    clock: Callable[[], float],
) -> Status:
    while True:
        begun = clock()
        status = look()
        show(status)
        if status.state in _ENDS:
            return status
        spent = clock() - begun
        sleep(max(every_s, spent / _MOST_WORK))


class _Screen:
    """Draws over what it drew before; the terminal is as it was afterwards, whatever happens."""

    def __init__(self, stream: TextIO, draw: Draw, terminal: Callable[[], Terminal]) -> None:
        self._stream = stream
        self._draw = draw
        self._terminal = terminal

    def __enter__(self) -> None:
        self._stream.write(_ENTER)

    def __exit__(self, *_: object) -> None:
        self._stream.write(_LEAVE)
        self._stream.flush()

    def show(self, status: Status) -> None:
        terminal = self._terminal()
        lines = list(self._draw(status, terminal))
        # One line is left free: at the last one a terminal would scroll.
        most = max(1, terminal.height - 1) if terminal.height else len(lines)
        if len(lines) > most:
            lines = [*lines[: most - 1], f"... {len(lines) - most + 1} more lines"]
        body = "".join(f"{line}{_TO_LINE_END}\n" for line in lines)
        self._stream.write(_HOME + body + _TO_SCREEN_END)
        self._stream.flush()


class _Lines:
    """Writes a line where something has changed."""

    def __init__(self, stream: TextIO, every_s: float, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._every_s = every_s
        self._clock = clock
        self._told: tuple[object, ...] = ()
        self._told_at = 0.0
        self._failures: tuple[str, ...] = ()

    def show(self, status: Status) -> None:
        what = (status.state, status.round, status.nodes, status.num_restarts, status.checkpoints)
        has_stepped = self._told[-1:] != (status.step,)
        is_due = self._clock() - self._told_at >= self._every_s
        if self._told[:-1] == what and not (has_stepped and is_due):
            return
        for text in status.failures:
            if text not in self._failures:
                self._stream.write(f"failure  {text}\n")
        self._failures = status.failures
        self._stream.write(change_line(status, time.strftime("%H:%M:%S")) + "\n")
        self._stream.flush()
        self._told, self._told_at = (*what, status.step), self._clock()
