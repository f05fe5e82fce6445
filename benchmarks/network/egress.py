"""What a node sends per sync, counted on its link, against the least possible 2 S (N-1)/N."""

from __future__ import annotations

from statistics import median
from typing import Final

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.ours import choices
from benchmarks.workload.syncing import FLAT, Setting, measure, ours
from bundlerun.launcher.choices import ExchangeDtype

CLAIM = (
    "a sync sends the least possible number of bytes between nodes; half of it in bfloat16, "
    "a quarter in int8, an eighth in int4"
)
NUM_HOSTS = (2, 3, 4)
RANKS_PER_HOST = 2
MBIT_PER_S = 1000
NUM_ROUNDS = 3
TARGETS: Final[dict[ExchangeDtype, float]] = {
    "float32": 1.01,
    "bfloat16": 0.51,
    "int8": 0.26,
    "int4": 0.14,
}

skip_reason = why_not


def run(options: Options) -> None:
    """Counts for 2, 3 and 4 nodes."""
    wanted = choices(["local-master"], list(TARGETS))
    dtype_of = {choice.name: choice.exchange_dtype for choice in wanted}
    bars = Bars("bytes sent over 2 S (N-1)/N", f"Egress of a node, {RANKS_PER_HOST} ranks each")
    rows, results, checks = [], [], []
    for num_hosts in NUM_HOSTS:
        setting = Setting(num_hosts=num_hosts, ranks_per_host=RANKS_PER_HOST, mbit_per_s=MBIT_PER_S)
        timings = measure(setting, {**FLAT, **ours(wanted)}, options.rounds_or(NUM_ROUNDS))
        for name, found in timings.items():
            sent = median(t.sent_bytes for t in found) / setting.least_bytes
            wire = median(t.wire_bytes for t in found) / setting.least_bytes
            rows.append(
                (f"{num_hosts} nodes, {name}", sent, wire, sum(t.num_dropped for t in found))
            )
            results.append(
                {"num_hosts": num_hosts, "scheme": name, "sent_ratio": sent, "wire_ratio": wire}
            )
            if name in dtype_of:
                dtype = dtype_of[name]
                what = f"{num_hosts} nodes, {dtype}: bytes sent over the least, at most"
                checks.append(Check(what, sent, TARGETS[dtype]))
            bars.add(f"{num_hosts} nodes", name, sent)
    print_table(("egress of a node", "over least", "with frame headers", "dropped"), rows)
    options.record("egress", {"ranks_per_host": RANKS_PER_HOST, "results": results}, checks)
    draw_bars("egress", bars, options, line=1.0)
