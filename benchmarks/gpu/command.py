"""`python3 -m benchmarks gpu`: reads the command line, runs the cases, prints the table.

python3 -m benchmarks gpu                          all cases, on the first GPU
python3 -m benchmarks gpu --only G4,G5 --out DIR   two of them
python3 -m benchmarks gpu --stand-in               tiny ones without a GPU: tests this program
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.gpu.listed import CASES, READY, chosen
from benchmarks.gpu.report import FILE, Report
from benchmarks.gpu.runner import EXIT_NO_GPU, ROOT, Runner, own_command, own_environ

BUDGET_S = 460.0
"""With what it takes to start and to end this is under eight minutes."""
_PATIENCE = 5.0
"""Limits and budget are so many times longer on the stand-in: its machine may be small and busy."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases; 0: all as wanted, 1: not so, 2: wrong usage, or there is no GPU."""
    parser = _parser()
    args = parser.parse_args(argv)
    try:
        cases = chosen([name for name in args.only.split(",") if name])
    except KeyError as exc:
        names = ", ".join(case.name for case in CASES)
        parser.error(f"no case {exc.args[0]!r}; choose from {names}")
    if args.stand_in:
        cases = [replace(case, limit_s=_PATIENCE * case.limit_s) for case in cases]
    if not 0 <= args.budget_s < math.inf:
        parser.error(f"--budget-s {args.budget_s:g} is no time; give seconds above 0")
    budget_s = args.budget_s or BUDGET_S * (_PATIENCE if args.stand_in else 1.0)
    # So that a case under way is ended, too.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    start = time.monotonic()
    try:
        report = Report(args.out, is_stand_in=args.stand_in)
    except OSError as exc:
        parser.error(f"cannot write to --out {str(args.out)!r}: {exc.strerror}")
    runner = Runner(
        report,
        partial(own_command, is_stand_in=args.stand_in),
        budget_s,
        own_environ(os.environ, is_stand_in=args.stand_in),
    )
    if runner.run_one(READY, min(READY.limit_s, budget_s)) == EXIT_NO_GPU:
        parser.error("torch can use no GPU here; --stand-in runs the cases without one")
    Runner(report, runner.command, budget_s - (time.monotonic() - start), runner.environ).run(cases)
    print(f"\n{report.table()}\n\n{args.out / FILE}, {time.monotonic() - start:.0f} s", flush=True)
    return 0 if report.is_good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    cases = "; ".join(f"{case.name} {case.what}" for case in CASES)
    parser.add_argument("--only", default="", metavar="NAME[,NAME...]", help=cases)
    parser.add_argument(
        "--stand-in", action="store_true", help="without a GPU, with tiny sizes; for tests"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "gpu", help="folder of gpu.json and gpu.log"
    )
    parser.add_argument(
        "--budget-s",
        type=float,
        default=0.0,
        metavar="N",
        help=f"for all cases, seconds (0: {BUDGET_S:g}; more on the stand-in)",
    )
    return parser
