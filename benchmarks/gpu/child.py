"""One case, in a process of its own; `benchmarks.gpu.runner` starts it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

from benchmarks.gpu.finding import Finding
from benchmarks.gpu.listed import CASES, READY, Case
from bundlerun.launcher.process import follow_parent, leave


class Measuring(Protocol):
    """A module of `benchmarks.gpu.cases`."""

    def run(self, bench: object) -> int | None:
        """Measures; an exit code, None for a good end."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the case and returns the exit code."""
    follow_parent()
    args = _parser().parse_args(argv)
    case = next(each for each in (READY, *CASES) if each.name == args.name)
    missing = missing_of(case)
    if missing:
        _say(args.descriptor, case, f"no module named {', '.join(missing)}")
        return 0
    # Only now: it imports torch.
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.stand_in import StandIn

    bench = Bench(
        case.name,
        args.descriptor,
        disk=args.disk,
        memory=args.memory,
        is_gpu=not args.stand_in,
        stand_in=StandIn() if args.stand_in else None,
    )
    module = cast(Measuring, importlib.import_module(f"benchmarks.gpu.{case.module}"))
    code = module.run(bench) or 0
    bench.check()
    return code


def missing_of(case: Case) -> list[str]:
    """The modules that a case needs and that are not here."""
    return [name for name in case.needs if importlib.util.find_spec(name) is None]


def _say(descriptor: int, case: Case, text: str) -> None:
    finding = Finding(case=case.name, what=case.what, measured=text, ok="cannot run")
    os.write(descriptor, f"{finding.text()}\n".encode())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[case.name for case in (READY, *CASES)])
    parser.add_argument("--descriptor", type=int, required=True, help="gets the findings")
    parser.add_argument("--disk", type=Path, required=True, help="a folder")
    parser.add_argument("--memory", type=Path, required=True, help="a folder in memory")
    parser.add_argument("--stand-in", action="store_true")
    return parser


if __name__ == "__main__":
    # torch's threads do not survive the end of the interpreter everywhere.
    leave(main(sys.argv[1:]))
