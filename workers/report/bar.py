"""The progress bar of an epoch, where a terminal can draw one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn, Self, TextIO

from tqdm import tqdm

from bundlerun.launcher.terminal import Terminal

_WIDE = 70
"""Columns from which on there is room for a bar and the clock beside the numbers."""
_BAR = 12
_WITH_BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
_WITHOUT = "{desc} {percentage:3.0f}%{postfix}"


class ProgressBar:
    """Draws it; numbers that do not fit are left out, the least needed first.

    Args:
        stream: a terminal that can draw.
        environ: says more of it.
        title: stands before the bar.
        total: steps of the epoch.
        done: of them, at its begin.
    """

    def __init__(
        self, stream: TextIO, environ: Mapping[str, str], title: str, total: int, done: int
    ) -> None:
        self._stream = stream
        self._environ = environ
        self._title = title
        self._bar: tqdm[NoReturn] = tqdm(
            total=total,
            initial=done,
            desc=title,
            bar_format=self._layout(self._width),
            dynamic_ncols=True,
            file=stream,
        )

    @classmethod
    def where_drawn(
        cls, stream: TextIO, environ: Mapping[str, str], title: str, total: int, done: int
    ) -> Self | None:
        """A bar; None for a file, and for a terminal that cannot draw over what is there."""
        if not Terminal.of(stream, environ).is_live:
            return None
        return cls(stream, environ, title, total, done)

    @property
    def _width(self) -> int:
        # Asked each time: a window may be drawn wider or narrower.
        return Terminal.of(self._stream, self._environ).width

    def _layout(self, width: int) -> str:
        return _WITH_BAR if width >= _WIDE else _WITHOUT

    def update(self, text_in: Callable[[int], str]) -> None:
        """One step more.

        Args:
            text_in: what stands after the bar, given the columns that it may take.
        """
        width = self._width
        self._bar.bar_format = self._layout(width)
        # "epoch 1/2 100%" and ", "; with a bar also "|", "| ", "00:00<00:00".
        taken = len(self._title) + 8 + (_BAR + 14 if width >= _WIDE else 0)
        self._bar.set_postfix_str(text_in(max(1, width - taken)), refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leaves it as it stands."""
        self._bar.close()
