"""How figures look: sizes, and colours that the page has two of, for light and for dark."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Name = Literal["ink", "quiet", "grid", "good", "bad", "doubt", "on bar"]


class Tone(NamedTuple):
    """One colour on a light page and on a dark one."""

    light: str
    dark: str


SERIES = (
    Tone("#1f6feb", "#6cb0ff"),
    Tone("#d1610a", "#ffa657"),
    Tone("#1a7f37", "#56d364"),
    Tone("#8e3ab8", "#d2a8ff"),
    Tone("#c62828", "#ff8a80"),
    Tone("#0b7285", "#56d4dd"),
    Tone("#8a6d00", "#e3c04f"),
    Tone("#5b6270", "#a3acb8"),
    Tone("#b5176f", "#ff9bd2"),
    Tone("#4453b8", "#a5b1ff"),
    Tone("#795548", "#d0ac96"),
    Tone("#5c8a1f", "#b5e07a"),
)
"""For what has no colour of its own, told apart on both pages."""
NAMED: dict[Name, Tone] = {
    "ink": Tone("#1c2330", "#e6edf3"),
    "quiet": Tone("#5b6270", "#a3acb8"),
    "grid": Tone("#d9dee5", "#343b45"),
    "good": Tone("#1a7f37", "#3fb950"),
    "bad": Tone("#c62828", "#ff7b72"),
    "doubt": Tone("#b26a00", "#e3a33b"),
    "on bar": Tone("#ffffff", "#0d1117"),
}
TONES = (*SERIES, *NAMED.values())
_STAND_IN = "#fe00"
"""Begins colours that stand for a tone of the page, whose number follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How one figure is to look.

    is_wide: for a page of 1280 pixels rather than 400. is_for_page: in stand-ins for the tones of
    the page; else in those of a light one, on white.
    """

    is_wide: bool = True
    is_for_page: bool = True

    @property
    def width(self) -> float:
        """Inches; text is about as large on both pages."""
        return 10.6 if self.is_wide else 4.7

    @property
    def pixels(self) -> int:
        """Columns that a curve over the whole width is worth."""
        return 900 if self.is_wide else 400

    def series(self, number: int) -> str:
        """The colour of one of several."""
        return self._tone(number % len(SERIES))

    def named(self, name: Name) -> str:
        """A colour by its use."""
        return self._tone(len(SERIES) + list(NAMED).index(name))

    def _tone(self, number: int) -> str:
        return f"{_STAND_IN}{number:02x}" if self.is_for_page else TONES[number].light

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Figures that are made inside look like this."""
        ink, quiet, grid = self.named("ink"), self.named("quiet"), self.named("grid")
        settings: Any = {
            "svg.fonttype": "none",
            "font.size": 9.0,
            "axes.titlesize": 9.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 9.0,
            "text.color": ink,
            "axes.labelcolor": quiet,
            "axes.titlecolor": ink,
            "axes.edgecolor": grid,
            "axes.facecolor": "none",
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.axisbelow": True,
            "grid.color": grid,
            "grid.linewidth": 0.6,
            "xtick.color": quiet,
            "ytick.color": quiet,
            "figure.facecolor": "none" if self.is_for_page else "white",
            "legend.frameon": False,
            "legend.fontsize": 8.5,
            "lines.linewidth": 1.4,
            # Nearly invisible steps of long curves are left out.
            "path.simplify_threshold": 0.2,
        }
        with matplotlib.rc_context(settings):
            yield


def literal(text: str) -> str:
    """A text of others for matplotlib, which takes what is between dollars for a formula."""
    return text.replace("$", r"\$")


def new_figure(look: Look, height: float) -> Figure:
    """An empty one. height: inches."""
    return Figure(figsize=(look.width, height))


def place_axes(
    figure: Figure,
    *,
    left: float = 0.75,
    right: float = 0.15,
    top: float = 0.3,
    bottom: float = 0.45,
) -> Axes:
    """Axes that fill a figure but for margins, inches; automatic ones would take long."""
    width, height = figure.get_size_inches()
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - top - bottom) / height,
    )
    return figure.add_axes(box)


def css() -> str:
    """The tones as variables of a page, light and dark."""
    light = "".join(f"--t{i}:{tone.light};" for i, tone in enumerate(TONES))
    dark = "".join(f"--t{i}:{tone.dark};" for i, tone in enumerate(TONES))
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"


def css_name(name: Name) -> str:
    """The variable of a tone by its use."""
    return f"var(--t{len(SERIES) + list(NAMED).index(name)})"


def css_series(number: int) -> str:
    """The variable of the tone of one of several."""
    return f"var(--t{number % len(SERIES)})"
