"""Times as bars in lanes: the life of a run by node, and a step by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from bundlerun.launcher.layout.schedule import Pass
from bundlerun.launcher.layout.timeline import Span as PlannedSpan
from bundlerun.launcher.report.clocks import on_one_clock
from bundlerun.launcher.report.figures.bars import BEHIND, PHASES
from bundlerun.launcher.report.figures.look import Look, Name, literal, new_figure, place_axes
from bundlerun.launcher.report.planned import planned, whole_bundles
from bundlerun.launcher.report.story import Doing, Story
from bundlerun.launcher.run_folder.measured import MeasuredRank

_MOST_LANES = 16
_MOST_BARS = 2500
_UNITS = (("h", 3600.0), ("min", 60.0), ("s", 1.0))
_DOING: dict[Doing, tuple[Name, str]] = {
    "meets": ("bad", "waits for a round"),
    "starts": ("doubt", "starts"),
    "trains": ("good", "trains"),
}


@dataclass(slots=True, kw_only=True)
class Drawn:
    """A figure, and what its bars say under the pointer, by the name of their collection."""

    figure: Figure
    titles: dict[str, list[str]] = field(default_factory=dict)


@dataclass(slots=True)
class _Bars:
    """Bars of one figure, which are drawn together."""

    corners: list[list[tuple[float, float]]] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    titles: list[str] = field(default_factory=list)

    def add(
        self, begin: float, end: float, middle: float, height: float, color: str, title: str
    ) -> None:
        low, high = middle - height / 2, middle + height / 2
        self.corners.append([(begin, low), (end, low), (end, high), (begin, high)])
        self.colors.append(color)
        self.titles.append(title)

    def put(self, axes: Axes, drawn: Drawn, name: str) -> None:
        if self.corners:
            bars = PolyCollection(self.corners, facecolors=self.colors, linewidths=0)
            bars.set_gid(name)
            axes.add_collection(bars, autolim=False)
            drawn.titles[name] = self.titles


def draw_story(story: Story, look: Look, *, begin_s: float) -> Drawn | None:
    """Rounds, and what each node did, over the time since the run began.

    Args:
        begin_s: when that was, seconds since the epoch.
    """
    if not story.lanes:
        return None
    # Those to whom something happened come first where there is no room for all.
    lanes = sorted(story.lanes, key=lambda lane: -len(lane.faults))[:_MOST_LANES]
    lanes = [lane for lane in story.lanes if lane in lanes]
    num_rows = len(lanes) + 1
    drawn = Drawn(figure=new_figure(look, 0.95 + 0.32 * num_rows))
    axes = place_axes(drawn.figure, left=1.2, top=0.35)
    ends = [part.end_s for lane in lanes for part in lane.parts]
    ends += [each.end_s for each in story.rounds]
    length = max(max(ends, default=begin_s) - begin_s, 1e-3)
    unit, unit_s = next(each for each in _UNITS if length > 3 * each[1] or each is _UNITS[-1])
    bars = _Bars()
    for number, each in enumerate(story.rounds):
        low, high = ((at - begin_s) / unit_s for at in (each.begin_s, each.end_s))
        color = look.named("quiet" if number % 2 else "grid")
        title = f"round {each.number}: {each.num_nodes} nodes from {_clock(each.begin_s)}"
        bars.add(low, high, 0, 0.5, color, title)
    for row, lane in enumerate(lanes, 1):
        for part in lane.parts:
            name, words = _DOING[part.doing]
            low, high = ((at - begin_s) / unit_s for at in (part.begin_s, part.end_s))
            took = f"{part.end_s - part.begin_s:.3g} s from {_clock(part.begin_s)}"
            title = f"{lane.node} {words} for {took}"
            bars.add(
                low, max(high, low + 0.001 * length / unit_s), row, 0.6, look.named(name), title
            )
        places = [(at - begin_s) / unit_s for at, _ in lane.faults]
        axes.plot(
            places, [row] * len(places), linestyle="", marker="x", color=look.named("bad"),
            markersize=7, markeredgewidth=2, clip_on=False,
        )  # fmt: skip
    bars.put(axes, drawn, f"story-{int(look.is_wide)}")
    most = 18 if look.is_wide else 12
    names = [
        "rounds",
        *(n if len(n) <= most else f"…{n[1 - most :]}" for n in (lane.node for lane in lanes)),
    ]
    axes.set_yticks(range(num_rows), list(map(literal, names)))
    axes.set_ylim(num_rows - 0.4, -0.6)
    axes.set_xlim(0, 1.005 * length / unit_s)
    axes.xaxis.set_major_locator(MaxNLocator(10 if look.is_wide else 5))
    axes.grid(visible=False, axis="y")
    if len(lanes) < len(story.lanes):
        axes.set_ylabel(f"{len(lanes)} of {len(story.lanes)} nodes")
    axes.set_xlabel(f"{unit} since the run began")
    for name, words in _DOING.values():
        axes.plot([], [], color=look.named(name), linewidth=6, label=words)
    axes.plot([], [], linestyle="", marker="x", color=look.named("bad"), label="failure")
    drawn.figure.legend(loc="upper left", ncols=4, handlelength=1.2, columnspacing=1.0)
    return drawn


def _clock(at_s: float) -> str:
    return datetime.fromtimestamp(at_s).astimezone().strftime("%Y-%m-%d %H:%M:%S")


class _Rows:
    """The rows of a step, from above.

    Args:
        per_second: points of the page.
    """

    def __init__(self, axes: Axes, look: Look, *, per_second: float) -> None:
        self.bars = _Bars()
        self.labels: list[tuple[int, str]] = []
        self.next = 0
        """Where the next one goes."""
        self._axes = axes
        self._look = look
        self._per_second = per_second

    def add_plan(
        self, place: tuple[int, int], spans: Sequence[PlannedSpan], begin_s: float
    ) -> None:
        """What a rank would do; its step begins at `begin_s`."""
        for span in spans:
            is_forward = span.action.kind is Pass.FORWARD
            color = self._look.series(PHASES["forward" if is_forward else "backward"])
            low, high = begin_s + span.start, begin_s + span.end
            title = f"plan: {span.action}, {_ms(span.end - span.start)}"
            self.bars.add(low, high, self.next, 0.6, color, title)
            self._label(str(span.action), low, high, self.next)
        self._end(f"plan {place[0]}.{place[1]}")

    def add_rank(self, rank: MeasuredRank, least_s: float) -> None:
        """What a rank did, but for what took less than `least_s`."""
        for span in rank.spans:
            if span.end_s - span.begin_s < least_s:
                continue
            is_own = span.phase in PHASES
            number = PHASES[span.phase] if is_own else BEHIND.get(span.phase, 7)
            row, height = (self.next - 0.06, 0.56) if is_own else (self.next + 0.36, 0.14)
            what = f"{span.phase} {span.action}".strip()
            of = " of the next step" if span.ahead else ""
            took = f"{_ms(span.end_s - span.begin_s)} at {_ms(span.begin_s)}"
            title = f"r{rank.rank} on {rank.node}: {what}{of}, {took}"
            color = self._look.series(number)
            self.bars.add(span.begin_s, span.end_s, row, height, color, title)
            if span.phase in ("forward", "backward"):
                self._label(span.action, span.begin_s, span.end_s, row)
        self._end(f"r{rank.rank}  {rank.bundle}: {rank.stage}.{rank.replica}")

    def _end(self, label: str) -> None:
        self.labels.append((self.next, label))
        self.next += 1

    def _label(self, text: str, low: float, high: float, row: float) -> None:
        """Where there is room."""
        if (high - low) * self._per_second > 5.5 * len(text) + 2:
            self._axes.text(
                (low + high) / 2, row, text,
                ha="center", va="center", fontsize=7, color=self._look.named("on bar"),
            )  # fmt: skip


def draw_step(ranks: Sequence[MeasuredRank], look: Look) -> Drawn | None:
    """A step as it would be by plan, and below as it was, on one axis of time.

    In a lane the thick bars are what the rank's own thread or its device did, the thin ones below
    them what went on behind it.
    """
    ranks = on_one_clock(whole_bundles(ranks, _MOST_LANES))
    if not ranks:
        return None
    first = [rank for rank in ranks if rank.bundle == ranks[0].bundle]
    plan = planned(first)
    plan_rows = sorted({(rank.stage, rank.replica) for rank in first}) if plan else []
    num_rows = len(ranks) + len(plan_rows) + (1 if plan_rows else 0)
    drawn = Drawn(figure=new_figure(look, 1.0 + 0.33 * num_rows + (0 if look.is_wide else 0.45)))
    axes = place_axes(drawn.figure, left=1.0, top=0.6 if look.is_wide else 1.05)
    begin_s = min(
        (s.begin_s for rank in first for s in rank.spans if s.phase == "forward"), default=0.0
    )
    end_s = max(span.end_s for rank in ranks for span in rank.spans)
    rows = _Rows(axes, look, per_second=(look.width - 1.15) * 72 / max(end_s, 1e-9))
    if plan is not None:
        for place in plan_rows:
            rows.add_plan(place, plan.spans[place], begin_s)
        rows.next += 1
        end_s = max(end_s, begin_s + plan.duration)
    least_s = _least_s(ranks, end_s)
    for rank in ranks:
        rows.add_rank(rank, least_s)
    rows.bars.put(axes, drawn, f"step-{int(look.is_wide)}-{ranks[0].step}")
    axes.set_yticks([at for at, _ in rows.labels], [text for _, text in rows.labels])
    axes.set_ylim(rows.next - 0.4, -0.6)
    axes.set_xlim(0, 1.003 * end_s)
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    axes.xaxis.set_major_locator(MaxNLocator(10 if look.is_wide else 4))
    axes.grid(visible=False, axis="y")
    _legend(drawn.figure, axes, ranks, look)
    return drawn


def _least_s(ranks: Sequence[MeasuredRank], end_s: float) -> float:
    """Shorter spans are not drawn: nobody would see them, and the page would grow."""
    lengths = sorted((s.end_s - s.begin_s for r in ranks for s in r.spans), reverse=True)
    too_many = lengths[_MOST_BARS] if len(lengths) > _MOST_BARS else 0.0
    return max(too_many, end_s / 4000)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms"


def _legend(figure: Figure, axes: Axes, ranks: Sequence[MeasuredRank], look: Look) -> None:
    there = {span.phase for rank in ranks for span in rank.spans}
    for name, number in {**PHASES, **BEHIND}.items():
        if name in there:
            width = 6 if name in PHASES else 2.5
            axes.plot([], [], color=look.series(number), linewidth=width, label=name)
    columns = 8 if look.is_wide else 3
    figure.legend(loc="upper left", ncols=columns, handlelength=1.0, columnspacing=1.1)
