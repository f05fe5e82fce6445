"""Where the time of a step went, and how much memory each stage held at most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from bundlerun.launcher.report.figures.look import Look, new_figure, place_axes
from bundlerun.launcher.report.run_data import RunData

PHASES: Mapping[str, int] = {
    "data": 6,
    "forward": 0,
    "backward": 1,
    "send": 5,
    "receive": 7,
    "sync_wait": 4,
    "optimizer": 2,
    "snapshot_wait": 8,
    "checkpoint": 10,
    "validate": 9,
    "launch": 3,
}
"""What a rank's own thread does, in the order of a step; and the number of its colour."""
BEHIND: Mapping[str, int] = {
    "collect": 11,
    "exchange": 8,
    "gather": 9,
    "distribute": 5,
    "snapshot": 7,
}
"""What other threads do meanwhile."""
_MOST_BARS = 40


def draw_phases(run: RunData, look: Look) -> Figure | None:
    """Seconds of a step by phase, a bar for each epoch; of many epochs some."""
    if not run.phases:
        return None
    every = -(-len(run.phases) // (_MOST_BARS if look.is_wide else _MOST_BARS // 3))
    epochs = run.phases[::-1][::every][::-1]
    names = [n for n in PHASES if any(n in phases for _, phases in epochs)]
    legend_rows = -(-len(names) // (7 if look.is_wide else 3))
    figure = new_figure(look, 2.9 + 0.2 * legend_rows)
    axes = place_axes(figure, top=0.15 + 0.22 * legend_rows)
    places = range(len(epochs))
    below = [0.0] * len(epochs)
    for name in names:
        heights = [phases.get(name, 0.0) for _, phases in epochs]
        axes.bar(
            places, heights, bottom=below, width=0.8, color=look.series(PHASES[name]), label=name
        )
        below = [b + h for b, h in zip(below, heights, strict=True)]
    axes.grid(visible=False, axis="x")
    axes.xaxis.set_major_locator(MaxNLocator(8 if look.is_wide else 4, integer=True))
    axes.xaxis.set_major_formatter(
        lambda at, _: f"{epochs[int(at)][0]:,}" if 0 <= at < len(epochs) and at == int(at) else ""
    )
    axes.set_xlim(-0.7, max(len(epochs) - 0.3, 2.5))
    axes.set_xlabel("finished steps at the end of each epoch")
    axes.set_ylabel("time of a step")
    axes.yaxis.set_major_formatter(EngFormatter("s"))
    figure.legend(
        loc="upper left", ncols=7 if look.is_wide else 3, handlelength=1.0, columnspacing=1.2
    )  # fmt: skip
    return figure


def memory_of(run: RunData) -> dict[str, dict[int, float]]:
    """The most bytes that one rank of a stage has held, by stage: of devices, and of hosts."""
    device = dict(run.device_peaks)
    host: dict[int, float] = {}
    for ranks in run.measured[-1:]:
        for rank in ranks:
            host[rank.stage] = max(host.get(rank.stage, 0.0), rank.host_bytes)
            if rank.device_bytes:
                device[rank.stage] = max(device.get(rank.stage, 0.0), rank.device_bytes)
    found = {"device memory": device, "host memory": host}
    return {name: stages for name, stages in found.items() if any(stages.values())}


def draw_memory(runs: Sequence[RunData], look: Look) -> Figure | None:
    """A bar for each stage of each run."""
    bars = [
        (number, f"{what}, stage {stage}" if what else "", size)
        for number, run in enumerate(runs)
        for what, stages in memory_of(run).items()
        for stage, size in sorted(stages.items())[:32]
    ]
    if not bars:
        return None
    figure = new_figure(look, 0.75 + 0.24 * len(bars))
    axes = place_axes(figure, left=1.65, top=0.1)
    axes.barh(
        range(len(bars)), [size for *_, size in bars], height=0.7,
        color=[look.series(number) for number, *_ in bars],
    )  # fmt: skip
    axes.set_yticks(range(len(bars)), [name for _, name, _ in bars])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.xaxis.set_major_formatter(EngFormatter("B"))
    axes.xaxis.set_major_locator(MaxNLocator(6 if look.is_wide else 3))
    axes.set_xlabel("peak of the rank that held most")
    return figure
