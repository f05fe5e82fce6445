"""Runs the benchmarks named on the command line, all of them without a name."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Protocol, cast

NAMES = ("loop", "start", "memory")


class Benchmark(Protocol):
    """A module of this package that measures one claim."""

    CLAIM: str

    def run(self) -> None:
        """Measures, prints a table and records the result."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmarks one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    # argparse checks an empty list against choices, too; so the names are checked by hand.
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    names = parser.parse_args(argv).names or NAMES
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; choose from {', '.join(NAMES)}")
    for name in names:
        benchmark = cast(Benchmark, importlib.import_module(f"benchmarks.{name}"))
        print(f"\n{name}: {benchmark.CLAIM}\n", flush=True)
        benchmark.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
