"""`--sync auto` against the best of local-master, sharded and flat, in twelve settings."""

from __future__ import annotations

from itertools import product
from statistics import median

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.ours import MODES, SyncChoice, choices
from benchmarks.workload.syncing import MIB, Setting, measure, median_ms, ours

CLAIM = "auto is within 3 % of the best mode in each of 12 settings"
LAYOUTS = ((2, 1), (2, 2), (2, 4), (4, 2))
MBIT_PER_S = (200, 500, 1000)
NUM_ROUNDS = 7
TARGET = 1.03

skip_reason = why_not


def run(options: Options) -> None:
    """Measures all modes in turn, setting by setting."""
    rows, results, checks = [], [], []
    bars = Bars("milliseconds", "Sync of 8 MiB by mode (nodes x ranks, Mbit/s)")
    schemes = ours(choices(["auto", *MODES]))
    auto = SyncChoice().name
    name_of: dict[str, str] = {mode: SyncChoice(mode=mode).name for mode in MODES}
    for (num_hosts, ranks), mbit in product(LAYOUTS, MBIT_PER_S):
        setting = Setting(
            num_hosts=num_hosts, ranks_per_host=ranks, mbit_per_s=mbit, num_bytes=8 * MIB
        )
        timings = measure(setting, schemes, options.rounds_or(NUM_ROUNDS))
        ms = {name: median_ms(found) for name, found in timings.items()}
        best = min((name for name in ms if name != auto), key=ms.__getitem__)
        over = median(
            a.seconds / b.seconds for a, b in zip(timings[auto], timings[best], strict=True)
        )
        name = f"{num_hosts}x{ranks}, {mbit}"
        chosen = timings[auto][0].note
        # The same mode by itself: what is left of the difference is the choice, not the noise.
        of_mode = ms[name_of[chosen]] / ms[best]
        rows.append((name, *ms.values(), best.removeprefix("bundlerun "), chosen, over, of_mode))
        results.append(
            {
                "setting": name,
                "ms": ms,
                "best": best,
                "chosen": chosen,
                "auto_over_best": over,
                "chosen_mode_over_best": of_mode,
            }
        )
        checks.append(Check(f"{name} Mbit/s: auto over the best, at most", over, TARGET))
        for scheme, value in ms.items():
            bars.add(name, scheme, value)
    names = (name.removeprefix("bundlerun ") for name in schemes)
    print_table(("setting", *names, "best", "auto took", "over best", "by itself"), rows)
    options.record("choice", {"mib": 8, "settings": results}, checks)
    draw_bars("choice", bars, options)
