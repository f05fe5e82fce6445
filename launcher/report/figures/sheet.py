"""Boxes, lines and words on a sheet; inches from its upper left corner."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from bundlerun.launcher.report.figures.look import literal

_LETTER = 0.58 / 72
"""Width of a letter in the mean, inches per point of its height."""


class Box(NamedTuple):
    """left, top, width, height: of it. face, edge: colours."""

    left: float
    top: float
    width: float
    height: float
    face: str
    edge: str
    layer: int = 1


class Stroke(NamedTuple):
    """A line. has_head: whether it is an arrow."""

    x: float
    y: float
    to_x: float
    to_y: float
    color: str
    width: float = 0.9
    is_dashed: bool = False
    has_head: bool = False


class Words(NamedTuple):
    """A text. y: its middle."""

    x: float
    y: float
    text: str
    points: float
    color: str
    align: Literal["left", "center", "right"] = "left"
    is_bold: bool = False


def width_of(text: str, points: float) -> float:
    """About as wide as a text is, inches."""
    return len(text) * points * _LETTER


def fitting(text: str, points: float, inches: float) -> str:
    """A text, its begin left out where there is no room."""
    most = max(2, int(inches / (points * _LETTER)))
    return text if len(text) <= most else f"…{text[1 - most :]}"


@dataclass(slots=True)
class Sheet:
    """What is on it; whoever puts something there says how far down it reaches."""

    boxes: list[Box] = field(default_factory=list)
    strokes: list[Stroke] = field(default_factory=list)
    words: list[Words] = field(default_factory=list)

    def put(self, axes: Axes, width: float, height: float) -> None:
        """Draws all of it on axes of that size, inches."""
        axes.set_xlim(0, width)
        axes.set_ylim(height, 0)
        axes.set_axis_off()
        for box in self.boxes:
            axes.add_patch(
                FancyBboxPatch(
                    (box.left, box.top), box.width, box.height,
                    boxstyle="round,pad=0,rounding_size=0.04",
                    facecolor=box.face, edgecolor=box.edge, linewidth=0.8, zorder=box.layer,
                    clip_on=False,
                )
            )  # fmt: skip
        for one in self.strokes:
            style: Literal["-"] | tuple[float, Sequence[float]]
            style = (0, (3, 1.5)) if one.is_dashed else "-"
            ends = (one.x, one.y), (one.to_x, one.to_y)
            if one.has_head:
                axes.add_patch(
                    FancyArrowPatch(
                        *ends, arrowstyle="-|>", mutation_scale=7, shrinkA=0, shrinkB=0,
                        color=one.color, linewidth=one.width, linestyle=style, zorder=3,
                    )
                )  # fmt: skip
            else:
                axes.add_line(
                    Line2D(
                        *zip(*ends, strict=True), color=one.color, linewidth=one.width,
                        linestyle=style, zorder=2,
                    )
                )  # fmt: skip
        for text in self.words:
            axes.text(
                text.x, text.y, literal(text.text), fontsize=text.points, color=text.color,
                ha=text.align, va="center", fontweight="bold" if text.is_bold else "normal",
                zorder=4,
            )  # fmt: skip
