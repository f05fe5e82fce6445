"""What a case is given: where it measures, its clock, and how it says what it found."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch

from benchmarks.gpu.finding import Finding, Verdict, number
from benchmarks.gpu.stand_in import StandIn
from bundlerun.workers.device import accelerator

T = TypeVar("T")
Act = Callable[[], object]


class Said:
    """Writes findings.

    Args:
        case: whose.
        descriptor: gets a line for each.
        is_shown: whether what it is told was really measured; else each finding says that it needs
            a GPU, and no figure.
    """

    def __init__(self, case: str, descriptor: int, *, is_shown: bool) -> None:
        self._case = case
        self._descriptor = descriptor
        self._is_shown = is_shown

    def figure(self, what: str, value: float, unit: str = "") -> None:
        """A number, for its own sake."""
        self._say(what, number(value, unit), "", "-", value)

    def note(self, what: str, text: str) -> None:
        """Words."""
        self._say(what, text, "", "-")

    def at_least(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """A number that should not be below `limit`."""
        is_so = value >= limit
        self._say(what, number(value, unit), f">= {number(limit, unit)}", _word(is_so), value)

    def at_most(self, what: str, value: float, limit: float, unit: str = "") -> None:
        """A number that should not be above `limit`."""
        is_so = value <= limit
        self._say(what, number(value, unit), f"<= {number(limit, unit)}", _word(is_so), value)

    def holds(self, what: str, is_so: bool, measured: str, wanted: str) -> None:
        """Something that should be so."""
        self._say(what, measured, wanted, _word(is_so))

    def cannot(self, what: str, wanted: str) -> None:
        """Something that only a GPU can show, and that was not even tried here."""
        self._say(what, "-", wanted, "needs a GPU")

    def _say(
        self, what: str, measured: str, wanted: str, ok: Verdict, value: float | None = None
    ) -> None:
        if not self._is_shown and ok != "needs a GPU":
            measured, ok, value = "ran", "needs a GPU", None
        finding = Finding(
            case=self._case, what=what, measured=measured, wanted=wanted, ok=ok, value=value
        )
        os.write(self._descriptor, f"{finding.text()}\n".encode())


def _word(is_so: bool) -> Verdict:
    return "yes" if is_so else "NO"


class Bench:
    """What a case is given.

    Args:
        case: its name.
        descriptor: gets its findings.
        disk: a folder that goes after it.
        memory: the same, in memory.
        is_gpu: whether it measures on a GPU; else sizes are tiny.
        stand_in: takes the place of one.
    """

    def __init__(
        self,
        case: str,
        descriptor: int,
        *,
        disk: Path,
        memory: Path,
        is_gpu: bool,
        stand_in: StandIn | None = None,
    ) -> None:
        self.is_gpu = is_gpu
        self.stand_in = stand_in
        self.disk = disk
        self.memory = memory
        self.said = Said(case, descriptor, is_shown=True)
        """For what is true on every device."""
        self.on_gpu = Said(case, descriptor, is_shown=self.is_gpu)
        """For what only a GPU can show."""

    def check(self) -> None:
        """Says what this process did that no GPU would forgive, as far as the stand-in sees it."""
        faults = [] if self.stand_in is None else self.stand_in.faults()
        if faults:
            print(*faults, sep="\n", flush=True)
            self.said.holds("mistakes", False, f"{len(faults)}: {faults[0]}", "none")

    @property
    def device(self) -> torch.device:
        """Where the case measures; asking does not start CUDA, so that the case can fork."""
        kind = accelerator.kind()
        return torch.device(kind, 0) if kind else torch.device("cpu")

    def sized(self, real: T, tiny: T) -> T:
        """What is used on a GPU, or in its place."""
        return real if self.is_gpu else tiny

    def limit_s(self, on_gpu_s: float) -> float:
        """A limit for what this case waits for, longer where the machine may be small and busy."""
        return self.sized(on_gpu_s, 5 * on_gpu_s)

    def drain(self) -> None:
        """Returns when the device has done all that it was given."""
        accelerator.drain(self.device)

    def ms(self, act: Act) -> float:
        """Milliseconds that the device takes for `act`, by its own events."""
        self.drain()
        if not accelerator.is_gpu(self.device):
            start_s = time.perf_counter()
            act()
            return 1000 * (time.perf_counter() - start_s)
        start, end = (accelerator.timer(self.device) for _ in range(2))
        start.record()
        act()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def pairs_ms(self, acts: tuple[Act, Act], num_pairs: int) -> list[tuple[float, float]]:
        """Milliseconds of both acts, pair after pair; which comes first alternates."""
        found = []
        for each in range(num_pairs):
            times = [0.0, 0.0]
            for which in (0, 1) if each % 2 else (1, 0):
                times[which] = self.ms(acts[which])
            found.append((times[0], times[1]))
        return found


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median over the pairs of the first over the second."""
    return median(first / second for first, second in pairs)


def turn(step: Act, num_steps: int) -> Callable[[], None]:
    """Several steps in a row, in which the host may run ahead of the device."""

    def run() -> None:
        for _ in range(num_steps):
            step()

    return run
