"""Keeps what a benchmark measured, with the machine and the versions it was measured on."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from bundlerun.launcher.run_folder.files import write_text

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "benchmarks"
PACKAGES = ("torch", "torchvision", "psutil")
LOAD_BEFORE = os.getloadavg()[0]
"""Load average of the last minute before the first benchmark: what others do on the machine."""


@dataclass(frozen=True, slots=True)
class Check:
    """A measured number and its target; the name says what it is and on which side it should be.

    Args:
        name: ends in "at least" or "at most".
        measured: the number.
        target: what it should be.
    """

    name: str
    measured: float
    target: float

    @property
    def is_met(self) -> bool:
        """Whether the number is on the right side of its target."""
        # All other names end in "at most".
        if self.name.endswith("at least"):
            return self.measured >= self.target
        return self.measured <= self.target


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says to every benchmark.

    Args:
        rounds: repetitions; 0: as many as the benchmark thinks right.
        keep: whether to write to docs/benchmarks.
        seed: of what is drawn.
        faults: how many; 0: as many as the benchmark thinks right.
        minutes: how long; 0: as long as the benchmark thinks right.
        only: parts of names of cases; empty: all of them.
    """

    rounds: int = 0
    keep: bool = True
    seed: int = 0
    faults: int = 0
    minutes: float = 0.0
    only: tuple[str, ...] = ()

    def wants(self, case: str) -> bool:
        """Whether this case is to be measured."""
        return not self.only or any(part in case for part in self.only)

    def rounds_or(self, default: int) -> int:
        """How often to measure."""
        return self.rounds or default

    def record(self, name: str, result: Mapping[str, object], checks: Sequence[Check] = ()) -> None:
        """Prints the checks and appends a measurement to the list in docs/benchmarks/NAME.json."""
        for check in checks:
            word = "met" if check.is_met else "NOT MET"
            print(f"{check.name} {check.target:g}: {check.measured:.3f}, {word}", flush=True)
        if self.keep:
            found = [{**asdict(check), "is_met": check.is_met} for check in checks]
            _append(name, {**result, "checks": found} if found else result)


def history(name: str) -> list[dict[str, object]]:
    """All measurements of one benchmark so far, oldest first."""
    path = FOLDER / f"{name}.json"
    found: list[dict[str, object]] = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    )
    return found


def _append(name: str, result: Mapping[str, object]) -> None:
    path = FOLDER / f"{name}.json"
    entry = {"date": time.strftime("%Y-%m-%d %H:%M"), **machine(), **result}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps([*history(name), entry], indent=2) + "\n")
    print(f"\nappended to {path.relative_to(ROOT)}", flush=True)


def machine() -> dict[str, object]:
    """The machine in words, its load averages (own work included after), and versions."""
    import psutil  # not everywhere where `python -m benchmarks gpu` runs

    memory_gib = psutil.virtual_memory().total / 2**30
    return {
        "machine": f"{os.cpu_count()} cores, {memory_gib:.0f} GiB, {platform.machine()}",
        "load_before": round(LOAD_BEFORE, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in PACKAGES},
    }


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table, first column to the left, numbers with three significant digits or more."""
    cells = [list(head), *([_text(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        first, *rest = (
            text.rjust(width) if i else text.ljust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        print("  ".join([first, *rest]), flush=True)


def _text(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.4g}"
