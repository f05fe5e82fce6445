"""What the folder of a run says, read once: history as columns, events, options, measured steps.

A crash may have cut lines short, and files of other versions lack some values: what is not there or
is no number is left out, and the rest is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundlerun.launcher.options.declared import flag_of
from bundlerun.launcher.report.look import RunLook
from bundlerun.launcher.run_folder.history import Row
from bundlerun.launcher.run_folder.measured import MeasuredRank, read_measured
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import Status

Column = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A value by step; the steps rise, and no value is missing."""

    steps: Column
    values: Column

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a run. source: where its value came from; empty where that is not known."""

    value: str
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """A run.

    name: for people. training, validation: curves by name; "loss" is one. speed: samples per second
    by step. phases: of each epoch its steps and the seconds that a step spent in each phase, mean
    over the ranks. bounds: what bound the steps of an epoch, in words. device_peaks: bytes by
    stage, where the device gives figures. marks: finished steps at which the run was resumed.
    """

    name: str
    root: Path
    status: Status
    training: Mapping[str, Curve]
    validation: Mapping[str, Curve]
    speed: Curve
    phases: Sequence[tuple[int, Mapping[str, float]]]
    bounds: Mapping[int, str]
    device_peaks: Mapping[int, float]
    marks: Sequence[int]
    events: Sequence[Row]
    rows: Sequence[Row]
    options: Mapping[str, Option]
    measured: Sequence[Sequence[MeasuredRank]]

    @property
    def unit(self) -> str:
        """What `speed` counts."""
        return self.status.unit if self.status.samples_per_s is not None else "steps"


def read_run(paths: RunPaths, *, clock: Callable[[], float], name: str = "") -> RunData:
    """Reads a run.

    Args:
        clock: gives seconds since the epoch.
        name: for people; by default that of the folder.

    Raises:
        OSError: the folder cannot be read.
    """
    look = RunLook(paths, clock)
    status = look.status()
    rows = look.rows
    steps = [row for row in rows if row.get("kind") == "step"]
    evaluated = [row for row in rows if row.get("kind") == "eval"]
    return RunData(
        name=name or paths.root.resolve().name,
        root=paths.root,
        status=status,
        training=_curves(steps, ("loss", *_others(steps), "lr", "loss_scale"), offset=1),
        validation=_curves(evaluated, ("loss",), offset=0),
        speed=_speed(rows),
        phases=_phases(rows),
        bounds=_bounds(rows),
        device_peaks=_peaks(rows),
        marks=[
            int(r["step"]) for r in rows if r.get("kind") == "restart" and _is_whole(r.get("step"))
        ],
        events=look.events,
        rows=rows,
        options=_options(paths),
        measured=list(read_measured(paths)),
    )


_KNOWN = frozenset(
    ("time", "kind", "step", "epoch", "loss", "lr", "loss_scale", "samples", "metrics", "left_out")
)


def _others(rows: Sequence[Row]) -> list[str]:
    """What the steps of a user's own loop say besides."""
    return sorted(set().union(*rows) - _KNOWN)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: object) -> float:
    """A value as a number; NaN where it is none, such as a text that stands for NaN."""
    try:
        return float(value)  # type: ignore[arg-type] # what is no number raises
    except (TypeError, ValueError):
        return math.nan


def _curves(rows: Sequence[Row], names: Iterable[str], *, offset: int) -> dict[str, Curve]:
    """Those of some values and of all metrics.

    Args:
        offset: rows of steps count from 0, and finished steps from 1.
    """
    at = np.array([row["step"] + offset for row in rows], dtype=np.float64)
    found = {name: [number(row.get(name)) for row in rows] for name in names}
    metrics = [row.get("metrics") for row in rows]
    tables = [m if isinstance(m, dict) else {} for m in metrics]
    for name in dict.fromkeys(key for table in tables for key in table):
        found[f"metrics/{name}"] = [number(table.get(name)) for table in tables]
    curves = {}
    for name, values in found.items():
        curve = _curve(at, np.array(values, dtype=np.float64))
        if len(curve):
            curves[name] = curve
    return curves


def _curve(steps: Column, values: Column) -> Curve:
    kept = np.isfinite(values)
    steps, values = steps[kept], values[kept]
    # A step that was done again comes once, as it stands last; most histories are in order.
    if len(steps) > 1 and not np.all(np.diff(steps) > 0):
        steps, last = np.unique(steps[::-1], return_index=True)
        values = values[::-1][last]
    return Curve(steps=steps, values=values)


def _speed(rows: Sequence[Row]) -> Curve:
    """Of each step that follows another without anything between them."""
    kinds = np.array(
        [row.get("kind") == "step" and _is_whole(row.get("step")) for row in rows], bool
    )
    if len(rows) < 2:
        return Curve(steps=np.empty(0), values=np.empty(0))
    times = np.array([float(row["time"]) for row in rows])
    samples = np.array([number(row.get("samples")) for row in rows])
    steps = np.array(
        [float(row["step"]) if is_step else 0.0 for row, is_step in zip(rows, kinds, strict=True)]
    )
    seconds = np.diff(times)
    kept = kinds[1:] & kinds[:-1] & (seconds > 0)
    if not np.any(np.isfinite(samples)):
        samples = np.ones(len(rows))  # of a user's own loop nobody knows them: steps per second
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = samples[1:] / seconds
    return _curve(steps[1:][kept] + 1, rates[kept])


def _phases(rows: Sequence[Row]) -> list[tuple[int, Mapping[str, float]]]:
    found: list[tuple[int, Mapping[str, float]]] = []
    for row, num_steps in _epochs(rows):
        phases = row.get("phases")
        if isinstance(phases, dict) and num_steps > 0:
            per_step = {str(n): number(s) / num_steps for n, s in phases.items()}
            found.append((int(row["step"]), {n: s for n, s in per_step.items() if s > 0}))
    return found


def _epochs(rows: Sequence[Row]) -> Iterable[tuple[Row, int]]:
    """The row of each epoch, and how many steps its attempt has done of it."""
    num_steps = 0
    for row in rows:
        kind = row.get("kind")
        if kind == "step":
            num_steps += 1
        elif kind in ("restart", "start"):
            num_steps = 0
        elif kind == "epoch":
            if _is_whole(row.get("step")):
                yield row, num_steps
            num_steps = 0


def _bounds(rows: Sequence[Row]) -> dict[int, str]:
    # An epoch that was done again counts once, as it was at last.
    return {
        int(row["epoch"]): str(row["text"])
        for row in rows
        if row.get("kind") == "why" and _is_whole(row.get("epoch")) and row.get("text")
    }


def _peaks(rows: Sequence[Row]) -> dict[int, float]:
    found: dict[int, float] = {}
    for row in rows:
        peaks = row.get("gpu_peak_bytes")
        for name, peak in peaks.items() if isinstance(peaks, dict) else ():
            stage = str(name).removeprefix("stage")
            if stage.isdecimal() and number(peak) > 0:
                found[int(stage)] = max(found.get(int(stage), 0.0), number(peak))
    return found


def _options(paths: RunPaths) -> dict[str, Option]:
    """All options with their sources; without these what the run has kept."""
    for file in sorted(paths.given_options.glob("*.json")):
        # Of the first node: training options are the same on all.
        kept = _object(file)
        found = {
            _flag(name): Option(_text(about.get("value")), str(about.get("source", "")))
            for part in ("train", "launch")
            for name, about in _items(kept.get(part))
            if isinstance(about, dict)
        }
        if found:
            return found
    return {_flag(name): Option(_text(value)) for name, value in _items(_object(paths.config))}


def _object(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _items(value: object) -> Iterable[tuple[str, Any]]:
    return value.items() if isinstance(value, dict) else ()


def _flag(name: str) -> str:
    return "DATA" if name == "data" else flag_of(name)


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def wall_s(row: Mapping[str, Any]) -> float:
    """When an event was, seconds since the epoch; NaN where it does not say."""
    try:
        return datetime.fromisoformat(str(row["wall"])).timestamp()
    except (KeyError, ValueError):
        return math.nan
