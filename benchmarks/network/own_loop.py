"""A user's own loop on two hosts: over `Bundle`, and over torch's tracer and its 1F1B."""

from __future__ import annotations

from benchmarks.cluster.hosts import why_not
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.looping import LOOPS, Setting, measure
from benchmarks.workload.syncing import median_ms, ratio

CLAIM = "a pipeline in a loop of one's own does 1.3 times the steps of torch's own pipelining"
SETTING = Setting()
NUM_ROUNDS = 15
TIMES_FASTER = 1.3
MOST_APART = 1e-5
_MB = 1e6

skip_reason = why_not


def run(options: Options) -> None:
    """Measures both in turn."""
    timings, apart = measure(SETTING, options.rounds_or(NUM_ROUNDS))
    name = f"{SETTING.activation_bytes / _MB:.1f} MB, {SETTING.num_microbatches} micro-batches"
    first, other = LOOPS
    faster = ratio(timings[other], timings[first])
    print_table(
        ("step", "median ms", "fastest ms"),
        [
            (f"{name}, {loop}", median_ms(found), 1000 * min(t.seconds for t in found))
            for loop, found in timings.items()
        ],
    )
    result = {
        "mbit_per_s": SETTING.mbit_per_s,
        "setting": name,
        "seconds": {loop: [t.seconds for t in found] for loop, found in timings.items()},
        "times_faster": faster,
        "losses_apart": apart,
    }
    checks = [
        Check("x torch's tracer and 1F1B, at least", faster, TIMES_FASTER),
        Check("losses of both, apart, at most", apart, MOST_APART),
    ]
    options.record("own_loop", result, checks)
