"""One sync of 16 MiB over a slow link, against a flat all-reduce and one call per parameter."""

from __future__ import annotations

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.ours import choices
from benchmarks.workload.syncing import (
    FLAT,
    PER_PARAMETER,
    Setting,
    measure,
    median_ms,
    ours,
    ratio,
)

CLAIM = "two nodes of four: 1.6 times faster than flat, 9 times faster than per parameter"
SETTING = Setting(num_hosts=2, ranks_per_host=4, mbit_per_s=400)
NUM_ROUNDS = 7
TARGETS = {"flat all-reduce": 1.6, "per parameter": 9.0}

skip_reason = why_not


def run(options: Options) -> None:
    """Measures all schemes in turn."""
    wanted = ours(choices(["auto", "local-master", "sharded", "flat"], ["float32", "bfloat16"]))
    timings = measure(SETTING, {**FLAT, **PER_PARAMETER, **wanted}, options.rounds_or(NUM_ROUNDS))
    rows, results = [], []
    bars = Bars("milliseconds", "Sync of 16 MiB, 2 nodes of 4 ranks, 400 Mbit/s")
    for name, found in timings.items():
        ms = median_ms(found)
        faster = [ratio(timings[baseline], found) for baseline in TARGETS]
        rows.append((name, ms, *faster))
        results.append(
            {"scheme": name, "ms": ms, "seconds": [t.seconds for t in found]}
            | dict(zip(TARGETS, faster, strict=True))
        )
        bars.add(name, "median", ms)
    least_ms = 1000 * SETTING.wire.seconds(SETTING.least_bytes)
    # What no scheme can beat in float32.
    rows.append(("the wire alone", least_ms, "", ""))
    print_table(("scheme", "median ms", *(f"x {name}" for name in TARGETS)), rows)
    best = "bundlerun auto"
    checks = [
        Check(f"times faster than {baseline}, at least", ratio(timings[baseline], timings[best]), x)
        for baseline, x in TARGETS.items()
    ]
    options.record("sync", {"least_ms": least_ms, "schemes": results}, checks)
    draw_bars("sync", bars, options, line=least_ms)
