"""Pictures of what was measured: docs/benchmarks/NAME.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.results.record import FOLDER, ROOT, Options

_INCHES = (8.0, 4.5)
_DPI = 110
Points = Sequence[tuple[float, float]]


@dataclass(slots=True)
class Bars:
    """A bar chart: groups along the axis, a colour per series."""

    unit: str
    title: str
    groups: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, group: str, series: str, value: float) -> None:
        """One bar."""
        self.groups.setdefault(group, {})[series] = value


def draw_bars(name: str, bars: Bars, options: Options, *, line: float | None = None) -> None:
    """Draws horizontal bars, so that names have room; `line` is the ideal."""
    if not options.keep:
        return
    # A series has the same colour in all groups, in the order in which they first appear.
    series = list(dict.fromkeys(s for group in bars.groups.values() for s in group))
    figure, axes = _figure(0.9 + 0.32 * sum(map(len, bars.groups.values())))
    places: list[float] = []
    names: list[str] = []
    at = 0.0
    for group, values in bars.groups.items():
        for one, value in values.items():
            axes.barh(at, value, color=f"C{series.index(one)}")
            axes.text(value, at, f" {_number(value)}", va="center", fontsize=8)
            places.append(at)
            names.append(group if len(series) == 1 else f"{group}, {one}")
            at += 1
        # Space between groups, where a group has more than one bar.
        at += 0.4 * (len(series) > 1)
    axes.set_yticks(places, names, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    if line is not None:
        axes.axvline(line, color="black", linestyle=":", linewidth=1)
    axes.set_xlabel(bars.unit)
    axes.set_title(bars.title, fontsize=10)
    _save(name, figure)


def draw_lines(
    name: str,
    options: Options,
    *,
    title: str,
    labels: tuple[str, str],
    lines: Mapping[str, Points],
    ideal: Mapping[str, Points] | None = None,
    spread: Mapping[str, Sequence[tuple[float, float, float]]] | None = None,
) -> None:
    """Draws measured lines, ideal ones dotted, and bands.

    Args:
        labels: of the x and y axis.
        spread: per line of the same name, (x, low, high).
    """
    if not options.keep:
        return
    figure, axes = _figure(_INCHES[1])
    for index, (label, points) in enumerate(lines.items()):
        axes.plot(*zip(*points, strict=True), f"C{index}.-", label=label, linewidth=1)
        if spread and label in spread:
            axes.fill_between(
                *zip(*spread[label], strict=True), color=f"C{index}", alpha=0.2, linewidth=0
            )
    for label, points in (ideal or {}).items():
        axes.plot(*zip(*points, strict=True), "k:", label=label, linewidth=1)
    axes.set_xlabel(labels[0])
    axes.set_ylabel(labels[1])
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.set_title(title, fontsize=10)
    _save(name, figure)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def _figure(height: float) -> tuple[Any, Any]:
    # Only who draws needs it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_INCHES[0], height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(name: str, figure: Any) -> None:  # noqa: ANN401
    path = FOLDER / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=_DPI)
    print(f"drawn in {path.relative_to(ROOT)}", flush=True)
