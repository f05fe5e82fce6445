"""One sync with 2 to 16 ranks per stage, against the formula 2 S (N-1)/N over the rate."""

from __future__ import annotations

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import draw_lines
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.ours import choices
from benchmarks.workload.syncing import FLAT, Setting, measure, median_ms, ours

CLAIM = "a sync takes within 10 % of what its bytes take on the wire, whatever the number of ranks"
LAYOUTS = ((2, 1), (2, 2), (2, 4), (2, 8), (4, 1), (4, 2), (4, 4))
MBIT_PER_S = 200
NUM_ROUNDS = 3
TARGET = 1.10

skip_reason = why_not


def run(options: Options) -> None:
    """Measures layout by layout."""
    rows, results, checks = [], [], []
    lines: dict[str, list[tuple[float, float]]] = {}
    ideal: dict[str, list[tuple[float, float]]] = {}
    own = choices(["auto"])
    schemes = {**FLAT, **ours(own)}
    for num_hosts, ranks in LAYOUTS:
        setting = Setting(num_hosts=num_hosts, ranks_per_host=ranks, mbit_per_s=MBIT_PER_S)
        timings = measure(setting, schemes, options.rounds_or(NUM_ROUNDS))
        # Depends on the nodes only: the time is to stay the same, however many ranks a node has.
        least_ms = 1000 * setting.wire.seconds(setting.least_bytes)
        num_ranks = num_hosts * ranks
        ideal.setdefault(f"formula, {num_hosts} nodes", []).append((num_ranks, least_ms))
        ms = {name: median_ms(found) for name, found in timings.items()}
        for name, value in ms.items():
            lines.setdefault(f"{name}, {num_hosts} nodes", []).append((num_ranks, value))
        mine = ms[own[0].name]
        rows.append((f"{num_hosts} nodes of {ranks}", *ms.values(), least_ms, mine / least_ms))
        results.append({"num_hosts": num_hosts, "ranks": ranks, "ms": ms, "least_ms": least_ms})
        what = f"{num_hosts} nodes of {ranks}: over the formula, at most"
        checks.append(Check(what, mine / least_ms, TARGET))
    print_table(("layout", *schemes, "formula", "ours over it"), rows)
    options.record("growth", {"mbit_per_s": MBIT_PER_S, "layouts": results}, checks)
    draw_lines(
        "growth",
        options,
        title=f"Sync of 16 MiB, links of {MBIT_PER_S} Mbit/s",
        labels=("ranks of the stage", "milliseconds"),
        lines=lines,
        ideal=ideal,
    )
