"""What `protect` costs around a plain loop with DDP, and what a killed rank costs it.

Cost: two ranks of ResNet-18, 32 images of 128 pixels and one thread each, protected and plain steps
in turn in one job; a snapshot after each protected step. Beside other work the same steps differ by
more than it costs, so what is done for a step is counted, too, by itself. A killed rank: the same,
of a small net, under `bundlerun script` and torchrun, and what the time goes into.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.machine.snapshot import more_percent
from benchmarks.results.record import ROOT, Check, Options, print_table
from bundlerun.launcher.process import follow_parent

CLAIM = "a plain DDP loop that is protected costs at most 1 % more, and a killed rank 2 s, no step"
MOST_PERCENT, MOST_S = 1.0, 2.0
NUM_TURNS, NUM_KILLS, NUM_KILLS_OTHERS = 40, 7, 2
LIMIT_S = 120.0
_SCRIPT = "benchmarks/workload/protected.py"
_BIN = Path(sys.executable).parent
_RANKS = 2
OURS = "bundlerun script"
WARM = "torchrun, bundlerun.warm"
PARTS = ("process", "imports", "group", "DDP", "protect", "step")
"""What a new rank has behind it, in order: it exists; its modules are there; the ranks have met;
DDP is made, which imports torch._dynamo; the state is back; a step is done."""
LAUNCHERS = {
    OURS: (str(_BIN / "bundlerun"), "script", "--devices=cpu", f"--slots={_RANKS}"),
    WARM: (
        str(_BIN / "torchrun"), "--standalone", f"--nproc-per-node={_RANKS}", "--max-restarts=100",
        "-m", "bundlerun.warm",
    ),
    "torchrun, backend bundle": (
        str(_BIN / "torchrun"), "--rdzv-backend=bundle", "--rdzv-endpoint=127.0.0.1",
        f"--nproc-per-node={_RANKS}", "--max-restarts=100",
    ),
    "torchrun": (
        str(_BIN / "torchrun"), "--standalone", f"--nproc-per-node={_RANKS}", "--max-restarts=100",
    ),
}  # fmt: skip


def run(options: Options) -> None:
    """Measures both; `--only cost` and `--only kill` one of them."""
    measured = {"cost": _cost, "kill": _killed}
    results = [measure(options) for name, measure in measured.items() if options.wants(name)]
    result = {key: value for found, _ in results for key, value in found.items()}
    options.record("protect", result, [check for _, checks in results for check in checks])


def _cost(options: Options) -> tuple[dict[str, object], list[Check]]:
    """What a step costs more."""
    turns = _turns(options.rounds_or(NUM_TURNS))
    cost = {
        name: more_percent(
            [each[kind] for each in turns["protected"]], [each[kind] for each in turns["plain"]]
        )
        for kind, name in enumerate(("processor time", "clock"))
    }
    counted = [100 * beside / own for beside, own in turns["counted"]]
    cost["counted"] = [min(counted), median(counted), max(counted)]
    step_ms = 1000 * median(each[1] for each in turns["plain"])
    print_table(
        ("percent of a step", "low", "median", "high"),
        [(name, *percent) for name, percent in cost.items()],
    )
    print(f"a plain step: {step_ms:.0f} ms", flush=True)
    return {"step_ms": step_ms, "cost_percent": cost, "turns": turns}, [
        Check("percent of a step, counted, at most", cost["counted"][1], MOST_PERCENT),
        Check("percent of a step, in turns, at most", cost["processor time"][1], MOST_PERCENT),
    ]


def _killed(options: Options) -> tuple[dict[str, object], list[Check]]:
    """What a killed rank costs, under each launcher."""
    kills = {}
    for name, words in LAUNCHERS.items():
        count = NUM_KILLS if name in (OURS, WARM) else NUM_KILLS_OTHERS
        kills[name] = _kills(words, min(count, options.rounds_or(count)))
    print_table(
        ("killed rank to next step", "median s", "worst s", "steps lost", "done again"),
        [
            (
                name,
                median(k["seconds"] for k in found),
                max(k["seconds"] for k in found),
                max(k["lost"] for k in found),
                max(k["again"] for k in found),
            )
            for name, found in kills.items()
        ],
    )
    print_table(
        ("seconds until, median", *PARTS),
        [(name, *(median(k[p] for k in found) for p in PARTS)) for name, found in kills.items()],
    )
    checks = []
    for name in (OURS, WARM):
        seconds = median(k["seconds"] for k in kills[name])
        checks.append(Check(f"{name}: killed rank to next step, s, at most", seconds, MOST_S))
    lost = max(k["lost"] for found in kills.values() for k in found)
    return {"kills": kills}, [*checks, Check("steps lost, at most", lost, 0)]


def _environment() -> dict[str, str]:
    # What a restart of stock torchrun needs, see docs/own_loop.md.
    own = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    return {**os.environ, **own, "PYTHONPATH": str(ROOT)}


def _turns(num_turns: int) -> dict[str, list[list[float]]]:
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as name:
        words = [*LAUNCHERS[OURS], f"--run-dir={name}/run", _SCRIPT, "turns", name]
        words.append(f"--turns={num_turns}")
        with subprocess.Popen(words, cwd=ROOT, env=_environment(), preexec_fn=follow_parent) as job:
            try:
                assert job.wait() == 0
            finally:
                job.kill()  # its ranks end with it
        found: dict[str, list[list[float]]] = json.loads((Path(name) / "turns.json").read_text())
        return found


def _kills(words: Sequence[str], count: int) -> list[dict[str, float]]:
    """Kills a rank again and again."""
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as name:
        folder = Path(name)
        with (folder / "log").open("wb") as log:
            job = subprocess.Popen(
                [*words, _SCRIPT, "train", name],
                cwd=ROOT, env=_environment(), stdout=log, stderr=log, start_new_session=True,
                preexec_fn=follow_parent,  # a timeout that ends this process undoes nothing
            )  # fmt: skip
            try:
                return [_kill(folder, number % _RANKS) for number in range(count)]
            finally:
                os.killpg(job.pid, signal.SIGKILL)
                job.wait()


def _kill(folder: Path, rank: int) -> dict[str, float]:
    """Kills a rank, and waits for a step of the next start."""
    _wait(folder, len(_steps(folder)) + 20)  # it is under way
    os.kill(int((folder / f"rank{rank}").read_text()), signal.SIGKILL)
    at = time.monotonic()
    pid = _steps(folder)[-1].pid
    deadline = at + LIMIT_S
    while time.monotonic() < deadline:
        steps = _steps(folder)
        new = next((step for step in steps if step.at > at and step.pid != pid), None)
        if new is not None:
            last = max(step.number for step in steps if step.pid == pid)
            times = json.loads((folder / f"start{new.pid}").read_text())
            return {
                **{part: times[part] - at for part in PARTS},
                "seconds": new.at - at,
                # Who was told a step knows that all ranks have the one before.
                "lost": max(0, last - new.number),
                "again": max(0, last + 1 - new.number),
            }
        time.sleep(0.005)
    raise AssertionError((folder / "log").read_text(errors="replace"))


class _Step(NamedTuple):
    number: int
    at: float
    pid: int


def _steps(folder: Path) -> list[_Step]:
    path = folder / "steps"
    lines = path.read_text().splitlines() if path.exists() else []
    words = (line.split() for line in lines)
    return [_Step(int(w[0]), float(w[1]), int(w[2])) for w in words if len(w) == 3]


def _wait(folder: Path, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while len(_steps(folder)) < count:
        assert time.monotonic() < deadline, (folder / "log").read_text(errors="replace")
        time.sleep(0.02)
