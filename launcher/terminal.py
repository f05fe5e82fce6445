"""What a stream can show: whether lines can be drawn again, colours, how wide it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TextIO

_NARROWEST = 20


class Ink(Enum):
    """Colours by what they say; each is a code that terminals know."""

    GOOD = "32"
    BAD = "31"
    DOUBT = "33"
    QUIET = "2"
    STRONG = "1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Terminal:
    """What a stream can show.

    is_live: what is there can be drawn over. has_colors: and in colours. width, height: columns and
    lines; of a stream that is no terminal 0, which stands for any number.
    """

    is_live: bool = False
    has_colors: bool = False
    width: int = 0
    height: int = 0

    @classmethod
    def of(cls, stream: TextIO, environ: Mapping[str, str]) -> Terminal:
        """That behind a stream.

        `NO_COLOR` takes the colours (no-color.org), `TERM=dumb` these and the drawing.
        """
        try:
            is_terminal = stream.isatty()
        except ValueError:  # closed
            is_terminal = False
        if not is_terminal:
            return cls()
        is_able = environ.get("TERM", "dumb") not in ("", "dumb")
        size = _size(stream)
        return cls(
            is_live=is_able,
            has_colors=is_able and not environ.get("NO_COLOR"),
            width=max(_NARROWEST, size.columns),
            height=size.lines,
        )

    def inked(self, text: str, ink: Ink) -> str:
        """`text` in a colour, where there are colours."""
        return f"\x1b[{ink.value}m{text}\x1b[0m" if self.has_colors and text else text

    def cut(self, text: str) -> str:
        """A line, in which there are no colours yet, that fits."""
        if not self.width or len(text) <= self.width:
            return text
        return text[: self.width - 1] + "…"


def _size(stream: TextIO) -> os.terminal_size:
    try:
        return os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return shutil.get_terminal_size()
