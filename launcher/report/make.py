"""Makes the report of runs: reads their folders, draws, and puts the page together."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bundlerun.launcher.report.figures.bars import draw_memory, draw_phases
from bundlerun.launcher.report.figures.curves import draw_loss, draw_metrics, draw_speed
from bundlerun.launcher.report.figures.lanes import Drawn, draw_step, draw_story
from bundlerun.launcher.report.figures.look import Look
from bundlerun.launcher.report.figures.svg import inline_svg
from bundlerun.launcher.report.page import (
    Picture,
    Section,
    bounds_html,
    columns,
    incidents_html,
    name_html,
    options_html,
    page,
    picture_html,
    summary_html,
)
from bundlerun.launcher.report.run_data import RunData, read_run, wall_s
from bundlerun.launcher.report.story import story_of
from bundlerun.launcher.report.thin import SMOOTH_PARTS
from bundlerun.launcher.run_folder.files import write_bytes, write_text
from bundlerun.launcher.run_folder.paths import RunPaths

Draw = Callable[[Look], "Drawn | Figure | None"]
_TITLES = {
    "loss": "Loss",
    "metrics": "Metrics",
    "speed": "Speed",
    "phases": "Where the time goes",
    "story": "What happened",
    "step": "A step",
    "memory": "Memory",
}
"""Of the parts of the page, in order."""
_WORDS: Mapping[str, Callable[[RunData], str]] = {"phases": bounds_html, "story": incidents_html}
"""What is told of each run below the figures of a part."""
_MOST_STEPS = 2
"""Measured steps that are shown of one run: the first and the last."""
_PNG_DPI = 160


@dataclass(frozen=True, slots=True)
class _Plate:
    """A figure of the report.

    kind: its part of the page. draw: makes it, unless there is nothing to draw. run: the number of
    the one that it is of; None: all. detail: tells it from others of its kind and run.
    """

    kind: str
    label: str
    draw: Draw
    caption: str = ""
    run: int | None = None
    detail: str = ""

    @property
    def name(self) -> str:
        """No other has the same."""
        return self.kind + ("" if self.run is None else f"-{self.run}") + self.detail

    def drawn(self, look: Look) -> Drawn | None:
        """The figure itself."""
        found = self.draw(look)
        return Drawn(figure=found) if isinstance(found, Figure) else found


def write_report(folders: Sequence[RunPaths], output: Path) -> list[RunData]:
    """Writes the page of runs; returns what it was made of.

    Raises:
        OSError: a folder cannot be read, or the file not be written.
    """
    runs = read_runs(folders)
    made_at = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    html = report_html(runs, made_at=made_at, version=_version())
    write_text(output, html, is_lasting=False)  # it can be made again
    return runs


def _version() -> str:
    try:
        return f"bundlerun {metadata.version('bundlerun')}"
    except metadata.PackageNotFoundError:
        return "bundlerun (not installed)"


def read_runs(
    folders: Sequence[RunPaths], *, clock: Callable[[], float] = time.time
) -> list[RunData]:
    """The runs, with names that tell them apart.

    Raises:
        OSError: a folder cannot be read.
    """
    roots = [paths.root.resolve() for paths in folders]
    depth = 1
    most = max(len(root.parts) for root in roots)
    while len({root.parts[-depth:] for root in roots}) < len(set(roots)) and depth < most:
        depth += 1
    names = ["/".join(root.parts[-depth:]) for root in roots]
    return [read_run(p, clock=clock, name=name) for p, name in zip(folders, names, strict=True)]


def report_html(runs: Sequence[RunData], *, made_at: str, version: str) -> str:
    """The page.

    Args:
        made_at: when, for people. version: of the program.
    """
    sections = [
        Section(title, "".join(parts))
        for title, found in _sections(runs)
        if (parts := [part for part in found if part])
    ]
    is_going_on = any(run.status.state in ("running", "quiet", "not begun") for run in runs)
    title = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    foot = f"Made {escape(made_at)} by {escape(version)} from the files of the run folder."
    return page(title, summary_html(runs), sections, foot=foot, is_going_on=is_going_on)


def _sections(runs: Sequence[RunData]) -> Iterator[tuple[str, list[str]]]:
    several = len(runs) > 1
    pictures = {
        plate.name: _picture(plate, is_in_column=several and plate.run is not None)
        for plate in _plates(runs)
    }
    for kind, title in _TITLES.items():
        common = [pictures[p.name] for p in _plates(runs) if (p.kind, p.run) == (kind, None)]
        blocks = []
        for number, run in enumerate(runs):
            own = [pictures[p.name] for p in _plates(runs) if (p.kind, p.run) == (kind, number)]
            if kind in _WORDS:
                own.append(_WORDS[kind](run))
            if any(own):
                name = f"<h3>{name_html(number, run, len(runs))}</h3>" if several else ""
                blocks.append(name + "".join(own))
        yield title, [*common, columns(blocks) if several and blocks else "".join(blocks)]
    yield "Configuration", [options_html(runs)]


def _plates(runs: Sequence[RunData]) -> Iterator[_Plate]:
    """Every figure; of several runs those of each one, too."""
    is_long = any(len(run.speed) >= 2 * SMOOTH_PARTS for run in runs)
    parts = ["The faint line is each step, the strong one its course."] if is_long else []
    parts += ["Dashed lines are restarts."] if any(run.marks for run in runs) else []
    of_many = " ".join(parts)
    dots = f"{of_many} Dots are validation.".strip()
    yield _Plate("loss", "loss by step", partial(draw_loss, runs), dots)
    yield _Plate("metrics", "metrics by step", partial(draw_metrics, runs))
    yield _Plate("speed", "samples per second by step", partial(draw_speed, runs), of_many)
    for number, run in enumerate(runs):
        yield from _plates_of(number, run)
    yield _Plate(
        "memory",
        "memory by stage",
        partial(draw_memory, runs),
        "Of a device what torch has reserved, of the host the resident memory of the process.",
    )


def _plates_of(number: int, run: RunData) -> Iterator[_Plate]:
    yield _Plate(
        "phases",
        "time of a step by phase",
        partial(draw_phases, run),
        "Time of a step in the rank's own thread or its device, mean over the ranks. What goes on "
        "behind it (sums, snapshots) is in sync_wait and snapshot_wait, unless it was hidden.",
        run=number,
    )
    first_s = next((float(row["time"]) for row in run.rows), 0.0)
    last_s = max((float(row["time"]) for row in run.rows), default=0.0)
    story = story_of(run.events, end_s=last_s)
    begins = [s for s in (first_s, *map(wall_s, run.events[:1])) if s > 0]
    draw = partial(draw_story, story, begin_s=min(begins, default=0.0))
    yield _Plate("story", "rounds, failures and recoveries by node", draw, run=number)
    for ranks in (*run.measured[:1], *run.measured[1:][-(_MOST_STEPS - 1) :]):
        name = f"step {ranks[0].step + 1}"
        yield _Plate(
            "step",
            f"{name}, action by action",
            partial(draw_step, ranks),
            f"{name.capitalize()} as measured; above it by plan: the same passes in the same "
            "order, each as long as its kind took in the mean, and transfers take no time. "
            "Rows are rank, bundle: stage.replica; thin bars went on behind the others.",
            run=number,
            detail=f"-{ranks[0].step + 1}",
        )


def _picture(plate: _Plate, *, is_in_column: bool) -> str:
    """A figure as HTML; empty where there is nothing to draw."""
    svgs = []
    for is_wide in (False,) if is_in_column else (True, False):
        look = Look(is_wide=is_wide)
        with look.applied():
            drawn = plate.drawn(look)
            if drawn is None:
                return ""
            name = f"{plate.name}-{'wide' if is_wide else 'narrow'}"
            svgs.append(inline_svg(drawn.figure, name=name, label=plate.label, titles=drawn.titles))
    return picture_html(Picture(svgs[0] if len(svgs) > 1 else "", svgs[-1], plate.caption))


def write_pngs(runs: Sequence[RunData], folder: Path) -> list[Path]:
    """Writes each figure as a PNG, for a light page; returns the files.

    Raises:
        OSError: the folder cannot be written.
    """
    written = []
    look = Look(is_for_page=False)
    with look.applied():
        for plate in _plates(runs):
            drawn = plate.drawn(look)
            if drawn is None:
                continue
            data = io.BytesIO()
            drawn.figure.set_dpi(_PNG_DPI)
            canvas: Any = FigureCanvasAgg(drawn.figure)
            canvas.print_png(data)
            path = folder / f"{plate.name}.png"
            write_bytes(path, data.getvalue(), is_lasting=False)
            written.append(path)
    return written
