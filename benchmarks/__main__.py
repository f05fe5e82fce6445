"""Runs the benchmarks named on the command line, all of them without a name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

from benchmarks.results.record import Options

ONE_MACHINE = (
    "loop",
    "operations",
    "loader",
    "shards",
    "checks",
    "start",
    "memory",
    "memory_forecast",
    "links",
    "snapshot",
    "protect",
    "watching",
    "profiling",
)
NETWORK = (
    "wire",
    "egress",
    "sync",
    "overlap",
    "choice",
    "growth",
    "pipeline",
    "own_loop",
    "in_flight",
    "replay",
    "cuts",
    "shapes",
    "resnet",
    "convergence",
    "slurm",
)
"""These make hosts of network namespaces, as root."""
FAULTS = (
    "recovery",
    "outlive",
    "slow_rank",
    "bad_link",
    "chaos",
    "alarms",
    "why",
    "trackers",
    "flips",
)
"""Named only: they take long. What needs a link of its own makes hosts, as root."""
INPUT = ("errors",)
"""Named only, as it takes long. What is told of wrong input: docs/benchmarks/errors.md."""
PLANNING = ("forecast",)
"""Named only, as they take long. They make hosts, as root."""
SCALE = ("rendezvous", "groups")
"""Named only, as they want the machine for themselves."""
ALL = (*ONE_MACHINE, *NETWORK, "summary")
NAMES = (*ALL, *FAULTS, *INPUT, *PLANNING, *SCALE)
_ROOMS = {
    **dict.fromkeys(ONE_MACHINE, "benchmarks.machine"),
    **dict.fromkeys(NETWORK, "benchmarks.network"),
    **dict.fromkeys(INPUT, "benchmarks.errors"),
    **dict.fromkeys(PLANNING, "benchmarks.planning"),
    **dict.fromkeys(SCALE, "benchmarks.scale"),
    "why": "benchmarks.why",
}


class Benchmark(Protocol):
    """A module of this package that measures one claim; it may have a `skip_reason()`."""

    CLAIM: str

    def run(self, options: Options) -> None:
        """Measures, prints a table and records the result."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks one after the other; `gpu` is a program of its own."""
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["gpu"]:
        return int(importlib.import_module("benchmarks.gpu.command").main(given[1:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="gpu has options of its own: python -m benchmarks gpu --help",
    )
    # argparse checks an empty list against choices, too; so the names are checked by hand.
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join((*NAMES, "gpu")))
    parser.add_argument(
        "--rounds",
        "--repeats",
        type=int,
        default=0,
        metavar="N",
        help="repetitions (0: each its own number)",
    )
    parser.add_argument(
        "--no-record", action="store_true", help="print only, write nothing to docs/benchmarks"
    )
    parser.add_argument("--seed", type=int, default=0, help="chaos: which faults")
    parser.add_argument("--faults", type=int, default=0, metavar="N", help="chaos, flips: how many")
    parser.add_argument("--minutes", type=float, default=0.0, help="alarms, why, flips: how long")
    parser.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="TEXT",
        help="recovery, outlive: faults; trackers: names; why: causes, or quiet; flips: kinds, or "
        "quiet; chaos: bundles, shapes; in_flight, replay, cuts, memory_forecast: models whose "
        "name has it; errors, slow_rank, bad_link: cases",
    )
    args = parser.parse_args(given)
    names = args.names or ALL
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    options = Options(
        rounds=args.rounds,
        keep=not args.no_record,
        seed=args.seed,
        faults=args.faults,
        minutes=args.minutes,
        only=tuple(args.only),
    )
    for name in names:
        module = importlib.import_module(f"{_ROOMS.get(name, 'benchmarks')}.{name}")
        benchmark = cast(Benchmark, module)
        print(f"\n{name}: {benchmark.CLAIM}\n", flush=True)
        reason = module.skip_reason() if hasattr(module, "skip_reason") else ""
        if reason:
            print(f"skipped: {reason}", flush=True)
        else:
            benchmark.run(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
