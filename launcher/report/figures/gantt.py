"""A step as a Gantt chart: a row per rank, its passes thick, messages and sums thin below them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from bundlerun.launcher.planning.picture.gantt import Bar, Gantt, Kind, Lane, Role, Source, Who
from bundlerun.launcher.report.figures.look import Look, literal

# Told apart by those who see no red or no green, and as greys: after those of Okabe and Ito.
COLORS = {
    Kind.FORWARD: "#00588f",
    Kind.BACKWARD: "#f2b233",
    Kind.WEIGHT: "#2aa57f",
    Kind.UPDATE: "#1f1f1f",
    Kind.OTHER: "#bdbdbd",
    Kind.HANDOVER: "#56b4e9",
    Kind.MESSAGE: "#56b4e9",
    Kind.COLLECT: "#882255",
    Kind.EXCHANGE: "#cc79a7",
    Kind.DISTRIBUTE: "#e8c3d8",
}
"""Of what is drawn, in the order of the legend; waits are left blank."""
_DARK = frozenset({Kind.FORWARD, Kind.UPDATE})
"""On which text is white."""
_AHEAD = "73"
"""Opacity of what is done ahead, as the end of a colour."""
_PLACES = {
    Role.PASSES: (-0.14, 0.56),
    Role.MESSAGES: (0.22, 0.11),
    Role.SUMS: (0.36, 0.13),
    Role.BEHIND: (0.36, 0.13),
}
"""Middle and height of the bars of a lane, in rows."""
_ROW_INCHES = 0.3
_HEAD = 0.75
"""Rows that the name of a bundle takes."""
_MOST_RANKS = 32
_NARROWEST = 1 / 4000
"""Of the chart: a bar below is not drawn, as nobody would see it."""
_LETTER_POINTS = 4.4
_LABEL_POINTS = 6.5


@dataclass(frozen=True, slots=True)
class Rows:
    """Where the ranks of a chart are.

    Args:
        ranks: that are shown, with the middle of the row of each.
        heads: names of bundles, and where each stands.
        length: of all, in rows.
    """

    ranks: tuple[tuple[Who, float], ...]
    heads: tuple[tuple[str, float], ...]
    length: float

    @property
    def inches(self) -> float:
        """Height of all."""
        return self.length * _ROW_INCHES

    @classmethod
    def of(cls, gantt: Gantt) -> Rows:
        """Those of a chart."""
        everyone = gantt.ranks
        shown = everyone[:_MOST_RANKS]
        heads: list[tuple[str, float]] = []
        ranks: list[tuple[Who, float]] = []
        at = 0.0
        for number in dict.fromkeys(who.bundle for who in shown):
            of_it = [who for who in shown if who.bundle == number]
            head = _head(of_it, gantt)
            if head:
                heads.append((head, at + _HEAD / 2))
                at += _HEAD
            for who in of_it:
                ranks.append((who, at + 0.5))
                at += 1
        if len(everyone) > len(shown):
            heads.append((f"{len(everyone) - len(shown)} more ranks", at + _HEAD / 2))
            at += _HEAD
        return cls(tuple(ranks), tuple(heads), at)


def _head(ranks: Sequence[Who], gantt: Gantt) -> str:
    """The name of a bundle; empty where it says nothing."""
    places = list(dict.fromkeys(who.where for who in ranks if who.where))
    count = min(who.count for who in ranks)
    is_only = len({who.bundle for who in gantt.ranks}) == 1
    if is_only and count == 1 and len(places) < 2:
        return ""
    alike = f"{count:,} bundles alike" if count > 1 else ""
    number = 1 + max(
        (bar.microbatch for lane in gantt.lanes if lane.who in ranks for bar in lane.bars),
        default=0,
    )
    of = "" if is_only else f"{number} micro-batches"
    where = " and ".join(places[:3])
    if gantt.source is Source.MEASURED:
        where = f"bundle {ranks[0].bundle} on {where}"
    return ", ".join(filter(None, [where, alike, of]))


def draw_gantt(
    axes: Axes, gantt: Gantt, rows: Rows, look: Look, limits: tuple[float, float], *, inches: float
) -> None:
    """Draws a chart.

    Args:
        axes: that it fills.
        gantt: it.
        rows: of it.
        look: of the figure.
        limits: of the axis of time.
        inches: width of the axes.
    """
    length = limits[1] - limits[0]
    per_unit = 72 * inches / length
    places = dict(rows.ranks)
    bars = [
        (lane, bar, places[lane.who])
        for lane in gantt.lanes
        if lane.who in places
        for bar in lane.bars
        if bar.kind in COLORS and bar.length >= _NARROWEST * length
    ]
    corners, colors = [], []
    for lane, bar, row in bars:
        middle, height = _PLACES[lane.role]
        low, high = row + middle - height / 2, row + middle + height / 2
        corners.append([(bar.begin, low), (bar.end, low), (bar.end, high), (bar.begin, high)])
        colors.append(COLORS[bar.kind] + (_AHEAD if bar.is_ahead else ""))
    # Thin white edges, so that passes of one kind in a row are told apart.
    axes.add_collection(
        PolyCollection(corners, facecolors=colors, edgecolors="white", linewidths=0.3),
        autolim=False,
    )
    for lane, bar, row in bars:
        _label(axes, lane, bar, row, per_unit)
    for edge in (0.0, gantt.step):
        axes.axvline(edge, color=look.named("ink"), linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
    _ticks(axes, gantt, rows, look, limits)


def _label(axes: Axes, lane: Lane, bar: Bar, row: float, per_unit: float) -> None:
    """Where there is room: all of it, else the number alone, else nothing."""
    if lane.role is not Role.PASSES or not bar.label:
        return
    for text in (bar.label, bar.label[1:]):
        if bar.length * per_unit > _LETTER_POINTS * len(text) + 1:
            color = "white" if bar.kind in _DARK and not bar.is_ahead else "black"
            middle = (bar.begin + bar.end) / 2
            axes.text(
                middle, row + _PLACES[lane.role][0], text,
                ha="center", va="center", fontsize=_LABEL_POINTS, color=color,
            )  # fmt: skip
            return


def _ticks(axes: Axes, gantt: Gantt, rows: Rows, look: Look, limits: tuple[float, float]) -> None:
    several = {
        number
        for number in {who.bundle for who, _ in rows.ranks}
        if len({who.where for who, _ in rows.ranks if who.bundle == number}) > 1
    }
    names = [
        f"{who.name} on {_short(who.where)}" if who.bundle in several else who.name
        for who, _ in rows.ranks
    ]
    axes.set_yticks(
        [at + _PLACES[Role.PASSES][0] for _, at in rows.ranks], list(map(literal, names))
    )
    axes.tick_params(axis="y", length=0, labelsize=7.5)
    axes.tick_params(axis="x", labelsize=7.5)
    for text, at in rows.heads:
        axes.annotate(
            literal(text), (0, at), xycoords=("axes fraction", "data"), xytext=(2, 0),
            textcoords="offset points", va="center", fontsize=7.5, color=look.named("quiet"),
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    axes.set_xlim(*limits)
    axes.set_ylim(rows.length, -0.15)
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_locator(MaxNLocator(10))
    if gantt.is_in_seconds:
        axes.xaxis.set_major_formatter(EngFormatter("s"))
    else:
        axes.set_xlabel("time, in forwards of one stage", fontsize=8)


def _short(text: str, most: int = 12) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def legend(figure: Figure, gantts: Sequence[Gantt], at: tuple[float, float]) -> None:
    """The colours that the charts have, in one or two lines; at: of the figure, from 0 to 1."""
    there = {bar.kind for gantt in gantts for lane in gantt.lanes for bar in lane.bars}
    figure.legend(
        handles=list(_handles(there)), loc="upper left", bbox_to_anchor=at, ncols=9, fontsize=7.5,
        handlelength=1.1, handleheight=0.8, columnspacing=1.1, borderaxespad=0, borderpad=0,
    )  # fmt: skip


def _handles(there: set[Kind]) -> Iterator[Patch]:
    for kind, color in COLORS.items():
        # One colour for both: to hand a message over, and to send it.
        if kind in there and not (kind is Kind.HANDOVER and Kind.MESSAGE in there):
            yield Patch(facecolor=color, label=kind.value)
