"""Loss, metrics and speed by step: as they are in the background, and their course over it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator, NullFormatter

from bundlerun.launcher.report.figures.look import Look, literal, new_figure, place_axes
from bundlerun.launcher.report.run_data import Curve, RunData
from bundlerun.launcher.report.thin import smoothed, thinned, typical

_MOST_PANELS = 9
_LOG_FROM = 50.0
"""A range of so many times its least value is drawn by powers of ten."""


def draw_loss(runs: Sequence[RunData], look: Look) -> Figure | None:
    """Training loss, and validation as dots."""
    if not any("loss" in run.training or "loss" in run.validation for run in runs):
        return None
    figure = new_figure(look, 3.4 if look.is_wide else 3.0)
    axes = place_axes(figure)
    _draw(axes, runs, "loss", look, pixels=look.pixels)
    axes.set_xlabel("finished steps")
    axes.set_ylabel("loss")
    _legend(axes, runs, look)
    return figure


def draw_metrics(runs: Sequence[RunData], look: Look) -> Figure | None:
    """A panel for each metric, and one for the learning rate."""
    names = dict.fromkeys(
        name
        for run in runs
        for curves in (run.validation, run.training)
        for name in curves
        if name != "loss"
    )
    # What is trained for first, then how.
    shown = sorted(names, key=lambda name: name in ("lr", "loss_scale"))[:_MOST_PANELS]
    if not shown:
        return None
    columns = min(len(shown), 3 if look.is_wide else 1)
    num_rows = -(-len(shown) // columns)
    height, margin, gap = 1.75, 0.75, 0.75
    figure = new_figure(look, num_rows * (height + 0.55) + 0.25)
    total = figure.get_size_inches()
    each = (look.width - margin - 0.15 - (columns - 1) * gap) / columns
    for index, name in enumerate(shown):
        row, column = divmod(index, columns)
        left = margin + column * (each + gap)
        bottom = total[1] - (row + 1) * (height + 0.55) + 0.2
        width, top = total
        box = (left / width, bottom / top, each / width, height / top)
        axes = figure.add_axes(box)
        title = "learning rate" if name == "lr" else name.removeprefix("metrics/")
        axes.set_title(literal(title))
        _draw(axes, runs, name, look, pixels=look.pixels // columns)
    return figure


def draw_speed(runs: Sequence[RunData], look: Look) -> Figure | None:
    """Samples per second."""
    if not any(len(run.speed) for run in runs):
        return None
    figure = new_figure(look, 2.7)
    axes = place_axes(figure)
    for number, run in enumerate(runs):
        if len(run.speed):
            _draw_curve(axes, run.speed, look.series(number), look.pixels, faint=0.3)
            _mark_restarts(axes, run, look)
    highest = max(typical(run.speed.values)[1] for run in runs if len(run.speed))
    axes.set_ylim(0, 1.15 * highest)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("finished steps")
    axes.set_ylabel(literal(f"{runs[0].unit}/s"))
    _legend(axes, runs, look)
    return figure


def _draw(axes: Axes, runs: Sequence[RunData], name: str, look: Look, *, pixels: int) -> None:
    for number, run in enumerate(runs):
        color = look.series(number)
        if name in run.training:
            _draw_curve(axes, run.training[name], color, pixels, faint=0.25)
        if name in run.validation:
            curve = thinned(run.validation[name], pixels // 4)
            axes.plot(
                curve.steps, curve.values, color=color, linestyle=":", marker="o", markersize=3.5
            )  # fmt: skip
        _mark_restarts(axes, run, look)
    curves = [c[name] for run in runs for c in (run.training, run.validation) if name in c]
    _scale(axes, curves, look, may_be_log=name != "lr")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(5 if pixels > 300 else 3, integer=True))


def _draw_curve(axes: Axes, curve: Curve, color: str, pixels: int, *, faint: float) -> None:
    thin, course = thinned(curve, pixels), smoothed(curve)
    has_course = course is not curve
    alpha = faint if has_course else 1.0
    # A point alone makes no line.
    marker = "o" if len(curve) == 1 else None
    axes.plot(thin.steps, thin.values, color=color, alpha=alpha, linewidth=0.8, marker=marker)
    if has_course:
        axes.plot(course.steps, course.values, color=color)


def _scale(axes: Axes, curves: Sequence[Curve], look: Look, *, may_be_log: bool) -> None:
    """Powers of ten where values differ that much; else the range that nearly all are in."""
    ranges = [typical(curve.values) for curve in curves if len(curve)]
    if not ranges:
        return
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    least = min(float(curve.values.min()) for curve in curves if len(curve))
    if may_be_log and least > 0 and high / max(low, 1e-300) > _LOG_FROM:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif high > low and math.isfinite(high - low):
        space = 0.06 * (high - low)
        axes.set_ylim(low - space, high + space)
        _tell_highest(axes, curves, look, high + space)


def _tell_highest(axes: Axes, curves: Sequence[Curve], look: Look, top: float) -> None:
    """Of a curve that leaves the axes at its top, how far it goes."""
    for curve in curves:
        at = int(curve.values.argmax()) if len(curve) else -1
        if at >= 0 and curve.values[at] > top:
            axes.annotate(
                f"\N{UPWARDS ARROW}{curve.values[at]:.3g}", (curve.steps[at], top),
                ha="center", va="bottom", fontsize=7.5, color=look.named("quiet"),
                annotation_clip=False,
            )  # fmt: skip


def _mark_restarts(axes: Axes, run: RunData, look: Look) -> None:
    for step in run.marks[:200]:
        axes.axvline(step, color=look.named("bad"), linewidth=0.7, alpha=0.6, linestyle="--")


def _legend(axes: Axes, runs: Sequence[RunData], look: Look) -> None:
    """Of several runs, and where there is something to tell apart of one."""
    names: Mapping[str, str] = {run.name: look.series(n) for n, run in enumerate(runs)}
    if len(names) > 1:
        for name, color in names.items():
            # One that begins with an underscore would be left out.
            label = f"\N{ZERO WIDTH SPACE}{name if look.is_wide else name[:24]}"
            axes.plot([], [], color=color, label=literal(label))
        axes.legend(loc="upper right", ncols=min(len(names), 4 if look.is_wide else 1))
