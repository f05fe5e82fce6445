"""What is left for training by the number of nodes, a line for each way and number of spares."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from bundlerun.launcher.planning.goodput.estimate import Goodput
from bundlerun.launcher.planning.goodput.simulate import Term
from bundlerun.launcher.planning.goodput.words import SHOWN
from bundlerun.launcher.report.figures.look import Look, new_figure


def picture(found: Sequence[Goodput], kind: str) -> bytes:
    """The picture as a file.

    Args:
        kind: "png" or "svg".
    """
    out = io.BytesIO()
    look = Look(is_for_page=False)
    with look.applied(), matplotlib.rc_context({"svg.hashsalt": "goodput"}):
        figure = draw_goodput(found, look)
        # Neither has types.
        canvas: Any = FigureCanvasSVG(figure) if kind == "svg" else FigureCanvasAgg(figure)
        if kind == "svg":
            canvas.print_svg(out, metadata={"Date": None})
        else:
            canvas.print_png(out, metadata={"Software": None})
    return out.getvalue()


def draw_goodput(found: Sequence[Goodput], look: Look) -> Figure:
    """Left the share that trains, with the range of runs; right where the rest goes, bar by bar."""
    figure = new_figure(look, 4.6)
    # Places by hand: automatic ones would take long.
    left = figure.add_axes((0.07, 0.11, 0.46, 0.81))
    right = figure.add_axes((0.68, 0.23, 0.3, 0.69))
    _draw_lines(left, found, look)
    _draw_losses(right, found, look)
    return figure


def _groups(found: Sequence[Goodput]) -> dict[str, list[Goodput]]:
    """By way and spares, which are a share of the nodes where they differ."""
    groups: dict[str, list[Goodput]] = {}
    for each in found:
        same = [
            g for g in found if g.way.name == each.way.name and g.fleet.nodes == each.fleet.nodes
        ]
        number = [g.fleet.spares for g in same].index(each.fleet.spares)
        groups.setdefault(f"{each.way.name} {number}", []).append(each)
    named = {}
    for rows in groups.values():
        spares = max(rows, key=lambda g: g.fleet.nodes).fleet
        shown = f"{spares.spares / spares.nodes:.2g}".rstrip("0").rstrip(".")
        words = f"{float(shown or 0):.0%} spares" if spares.spares else "no spares"
        named[f"{rows[0].way.name}, {words}"] = rows
    return named


def _draw_lines(axes: Axes, found: Sequence[Goodput], look: Look) -> None:
    names = list(dict.fromkeys(each.way.name for each in found))
    for label, rows in _groups(found).items():
        color = look.series(names.index(rows[0].way.name))
        style = "-" if rows[-1].fleet.spares else "--"
        places = [row.fleet.nodes for row in rows]
        axes.plot(places, [row.share for row in rows], style, color=color, marker="o", markersize=3)
        axes.fill_between(
            places, [r.least for r in rows], [r.most for r in rows], color=color, alpha=0.12, lw=0
        )
        axes.plot([], [], style, color=color, label=label)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("nodes")
    axes.set_title("goodput: time that goes into steps that stay")
    axes.legend(loc="lower left")


def _draw_losses(axes: Axes, found: Sequence[Goodput], look: Look) -> None:
    """Of the largest cluster."""
    most = max(each.fleet.nodes for each in found)
    rows = [each for each in found if each.fleet.nodes == most]
    labels = [f"{row.way.name},\n{row.fleet.spares:,} spares" for row in rows]
    left = [0.0] * len(rows)
    terms: tuple[Term, ...] = SHOWN
    for number, term in enumerate(terms):
        values = [row.terms[term] for row in rows]
        axes.barh(labels, values, left=left, color=look.series(number), label=term.value)
        left = [one + other for one, other in zip(left, values, strict=True)]
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_title(f"where the rest goes, {most:,} nodes")
    axes.legend(loc="upper center", bbox_to_anchor=(0.35, -0.09), ncols=3)
