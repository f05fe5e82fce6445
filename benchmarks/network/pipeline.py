"""Two stages on two hosts: a step against one without communication, and against torch's."""

from __future__ import annotations

from typing import Final

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.piping import ALONE, BASELINES, Setting, measure, ours
from benchmarks.workload.syncing import median_ms, ratio
from bundlerun.launcher.choices import ScheduleName

CLAIM = "a step is within 8 % of one without communication, and 1.45 times faster than torch's 1F1B"
MAIN = Setting(activation_bytes=2_500_000, num_microbatches=8)
OTHERS = (
    Setting(activation_bytes=1_250_000, num_microbatches=8),
    Setting(activation_bytes=2_500_000, num_microbatches=16),
)
NUM_ROUNDS = 7
OVER_IDEAL = 1.08
TIMES_FASTER = 1.45
SCHEDULES: Final[tuple[ScheduleName, ...]] = ("1f1b", "eager-1f1b", "zero-bubble")
_MB = 1e6

skip_reason = why_not


def run(options: Options) -> None:
    """Measures all schedules in turn, setting by setting."""
    bars = Bars("milliseconds", "A step of 2 stages, passes of 20/40 ms, 1 Gbit/s")
    rows, results, checks = [], [], []
    for setting in (MAIN, *OTHERS):
        name = f"{setting.activation_bytes / _MB:g} MB, {setting.num_microbatches} micro-batches"
        runners = {**ALONE, **BASELINES, **ours("gpipe", *SCHEDULES, "interleaved")}
        timings = measure(setting, runners, options.rounds_or(NUM_ROUNDS))
        ideal_ms = 1000 * setting.no_communication_s
        chosen = setting.chosen()
        for runner, found in timings.items():
            ms, faster = median_ms(found), ratio(timings["torch 1F1B"], found)
            rows.append((f"{name}, {runner}", ms, ms / ideal_ms, faster))
            results.append(
                {
                    "setting": name,
                    "schedule": runner,
                    "is_chosen": runner == f"bundlerun {chosen}",
                    "ms": ms,
                    "over_ideal": ms / ideal_ms,
                    "times_faster_than_torch_1f1b": faster,
                    "seconds": [t.seconds for t in found],
                }
            )
            bars.add(name, runner, ms)
        # Targets are for one setting; the others show where they stop holding.
        if setting is MAIN:
            for schedule in SCHEDULES:
                found = timings[f"bundlerun {schedule}"]
                over, faster = median_ms(found) / ideal_ms, ratio(timings["torch 1F1B"], found)
                checks += [
                    Check(f"{schedule}: over no communication, at most", over, OVER_IDEAL),
                    Check(f"{schedule}: x torch's 1F1B, at least", faster, TIMES_FASTER),
                ]
            over = median_ms(timings[f"bundlerun {chosen}"]) / ideal_ms
            checks.append(
                Check(f"auto ({chosen}): over no communication, at most", over, OVER_IDEAL)
            )
    print_table(("step", "median ms", "over nominal ideal", "x torch 1F1B"), rows)
    options.record("pipeline", {"mbit_per_s": MAIN.mbit_per_s, "results": results}, checks)
    draw_bars("pipeline", bars, options, line=1000 * MAIN.no_communication_s)
