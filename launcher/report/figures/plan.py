"""The picture of a plan: nodes and what is sent between them, below it a step in time."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Literal

import matplotlib
from matplotlib.figure import Figure

from bundlerun.launcher.planning.picture.gantt import Gantt
from bundlerun.launcher.planning.picture.nodes import Nodes
from bundlerun.launcher.report.figures.gantt import Rows, draw_gantt, legend
from bundlerun.launcher.report.figures.look import Look, literal, new_figure
from bundlerun.launcher.report.figures.plan_nodes import lay_out

Ending = Literal["svg", "png", "pdf"]
_MARGIN = 0.2
_LEFT = 1.2
"""Of a chart, for the names of its rows."""
_RIGHT = 0.25
_PNG_DPI = 160


def draw_plan(
    title: str, nodes: Nodes, charts: Sequence[tuple[str, Gantt]], notes: Sequence[str] = ()
) -> Figure:
    """Draws it; charts in seconds have one axis of time, so that they can be compared.

    Args:
        title: of all.
        nodes: what is where.
        charts: with the heading of each, from above.
        notes: lines below all.
    """
    look = Look(is_for_page=False)
    with look.applied():
        width = look.width
        sheet, top_height = lay_out(nodes, look, width - 2 * _MARGIN)
        rows = [Rows.of(gantt) for _, gantt in charts]
        chart_heights = [0.3 + each.inches + 0.45 for each in rows]
        height = _MARGIN + 0.3 + top_height + 0.3 + sum(chart_heights) + 0.16 * len(notes) + _MARGIN
        figure = new_figure(look, height)
        ink, quiet = look.named("ink"), look.named("quiet")

        def at(x: float, y: float) -> tuple[float, float]:
            return x / width, 1 - y / height

        y = _MARGIN
        figure.text(
            *at(_MARGIN, y), literal(title), va="top", fontsize=11, weight="bold", color=ink
        )
        y += 0.3
        box = (
            _MARGIN / width,
            1 - (y + top_height) / height,
            1 - 2 * _MARGIN / width,
            top_height / height,
        )
        sheet.put(figure.add_axes(box), width - 2 * _MARGIN, top_height)
        y += top_height + 0.04
        legend(figure, [gantt for _, gantt in charts], at(_MARGIN, y + 0.02))
        y += 0.26
        inches = width - _LEFT - _RIGHT
        for (heading, gantt), each, tall in zip(charts, rows, chart_heights, strict=True):
            figure.text(
                *at(_MARGIN, y + 0.06),
                literal(heading),
                va="top",
                fontsize=9.5,
                weight="bold",
                color=ink,
            )
            low = y + tall - 0.45
            axes = figure.add_axes(
                (_LEFT / width, 1 - low / height, inches / width, each.inches / height)
            )
            draw_gantt(axes, gantt, each, look, _limits(gantt, charts), inches=inches)
            y += tall
        for number, note in enumerate(notes):
            figure.text(
                *at(_MARGIN, y + 0.16 * number), literal(note), va="top", fontsize=7.5, color=quiet
            )
        return figure


def _limits(gantt: Gantt, charts: Sequence[tuple[str, Gantt]]) -> tuple[float, float]:
    alike = [each for _, each in charts if each.is_in_seconds == gantt.is_in_seconds]
    begin, end = min(each.begin for each in alike), max(each.end for each in alike)
    room = 0.008 * (end - begin) or 1.0
    return begin - room, end + room


def as_bytes(figure: Figure, ending: Ending) -> bytes:
    """The file of a figure; the same whenever it is made."""
    out = io.BytesIO()
    date = {"svg": "Date", "pdf": "CreationDate"}.get(ending)
    # The salt names the parts of an SVG.
    with matplotlib.rc_context(
        {"svg.fonttype": "none", "svg.hashsalt": "plan", "pdf.fonttype": 42}
    ):
        figure.savefig(out, format=ending, dpi=_PNG_DPI, metadata={date: None} if date else None)
    return out.getvalue()
