"""A whole step with 400 ms of computing on a slow link: what of the sync is not hidden."""

from __future__ import annotations

from statistics import median
from typing import Final, get_args

from benchmarks.cluster.hosts import why_not
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.ours import SyncChoice, choices
from benchmarks.workload.stepping import (
    BASELINES,
    Setting,
    behind_forward,
    behind_name,
    measure,
    ours,
)
from benchmarks.workload.syncing import median_ms, ratio
from bundlerun.launcher.choices import EXCHANGE_SHARE, ExchangeDtype

CLAIM = "a step is 1.65 (bf16: 2.7) times faster than DDP's, and within 8 % of what the wire allows"
SETTING = Setting(mbit_per_s=200)
NUM_ROUNDS = 7
TIMES_FASTER: Final[dict[ExchangeDtype, float]] = {"float32": 1.65, "bfloat16": 2.7}
OVER_LEAST = 1.08
OVER_LONGER = 1.05
"""Of a step whose exchange is hidden behind the next forward, too."""
_DTYPES: Final[tuple[ExchangeDtype, ...]] = get_args(ExchangeDtype)

skip_reason = why_not


def run(options: Options) -> None:
    """Measures all schemes in turn."""
    wanted = ours(choices(["auto", "local-master"], _DTYPES))
    wanted |= behind_forward([SyncChoice(mode="local-master", exchange_dtype=d) for d in _DTYPES])
    timings = measure(SETTING, {**BASELINES, **wanted}, options.rounds_or(NUM_ROUNDS))
    title = f"A step: 400 ms of computing, 16 MiB of gradients, {SETTING.mbit_per_s:g} Mbit/s"
    bars = Bars("milliseconds", f"{title}, 2 nodes of 4 ranks")
    rows: list[tuple[object, ...]] = []
    results = []
    for name, found in timings.items():
        faster = ratio(timings["DDP"], found)
        sent_mib = median(t.sent_bytes for t in found) / 2**20
        rows.append((name, median_ms(found), faster, sent_mib))
        results.append(
            {
                "scheme": name,
                "ms": median_ms(found),
                "times_faster_than_ddp": faster,
                "sent_mib": sent_mib,
                "seconds": [t.seconds for t in found],
            }
        )
        bars.add(name, "median", median_ms(found))
    least_ms = {dtype: 1000 * SETTING.least_s(4 * EXCHANGE_SHARE[dtype]) for dtype in _DTYPES}
    longer_ms = {dtype: 1000 * SETTING.longer_s(4 * EXCHANGE_SHARE[dtype]) for dtype in _DTYPES}
    rows += [(f"longer of both in {dtype}", ms, "", "") for dtype, ms in longer_ms.items()]
    rows += [(f"possible in {dtype}", ms, "", "") for dtype, ms in least_ms.items()]
    print_table(("scheme", "median ms", "x DDP", "MiB a node sent"), rows)
    checks = []
    for dtype in _DTYPES:
        own = timings[SyncChoice(exchange_dtype=dtype).name]
        if dtype in TIMES_FASTER:
            what = f"{dtype}: times faster than DDP, at least"
            checks.append(Check(what, ratio(timings["DDP"], own), TIMES_FASTER[dtype]))
        what = f"{dtype}: over forward, first bucket and wire, at most"
        checks.append(Check(what, median_ms(own) / least_ms[dtype], OVER_LEAST))
        behind = timings[behind_name(SyncChoice(mode="local-master", exchange_dtype=dtype))]
        what = f"{dtype}: behind the next forward, over the longer of computing and wire, at most"
        checks.append(Check(what, median_ms(behind) / longer_ms[dtype], OVER_LONGER))
    options.record(
        "overlap", {"least_ms": least_ms, "longer_ms": longer_ms, "schemes": results}, checks
    )
    draw_bars("overlap", bars, options, line=least_ms["float32"])
