"""Bundles of uneven shapes, whose stages sleep: throughput against the narrowest stage's."""

from __future__ import annotations

from typing import Final

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.piping import Setting, StageTimes, measure, ours
from benchmarks.workload.syncing import median_ms
from bundlerun.launcher.choices import ScheduleName
from bundlerun.launcher.layout.shape import Shape

CLAIM = "bundles of any shape reach 0.9 of the throughput of their narrowest stage"
NUM_ROUNDS = 2
TARGET = 0.9
NUM_MICROBATCHES = 96
ACTIVATION_BYTES = 250_000
SCHEDULES: Final[tuple[ScheduleName, ...]] = ("1f1b", "eager-1f1b", "zero-bubble")
CASES: dict[str, tuple[float, ...]] = {
    "2,1": (0.090, 0.048),
    "3,2": (0.120, 0.096),
    "4,1,2": (0.160, 0.048, 0.080),
}
"""Seconds that one micro-batch takes on a rank of each stage; the middle of the last is narrow."""

skip_reason = why_not


def run(options: Options) -> None:
    """Measures shape by shape, each stage on its own host."""
    bars = Bars("share of the narrowest stage's throughput", "Bundles of uneven shapes, 1 Gbit/s")
    rows, results, checks = [], [], []
    for text, seconds in CASES.items():
        shape = Shape.parse(text)
        setting = Setting(
            shape=shape,
            times=tuple(StageTimes.of(s) for s in seconds),
            activation_bytes=ACTIVATION_BYTES,
            num_microbatches=NUM_MICROBATCHES,
        )
        least_ms = 1000 * NUM_MICROBATCHES * setting.narrowest_s
        timings = measure(setting, ours(*SCHEDULES), options.rounds_or(NUM_ROUNDS))
        shares = {name: least_ms / median_ms(found) for name, found in timings.items()}
        for name, share in shares.items():
            ms = median_ms(timings[name])
            rows.append((f"{text}, {name}", ms, least_ms, share))
            results.append({"shape": shape.widths, "schedule": name, "ms": ms, "share": share})
            bars.add(text, name, share)
            schedule = name.removeprefix("bundlerun ")
            checks.append(Check(f"{text}, {schedule}: share, at least", share, TARGET))
    print_table(("bundle", "median ms", "narrowest stage alone", "share"), rows)
    options.record("shapes", {"num_microbatches": NUM_MICROBATCHES, "results": results}, checks)
    draw_bars("shapes", bars, options, line=TARGET)
