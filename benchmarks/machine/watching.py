"""What it costs a run to be watched: bar, trackers and meters, beside the build before them.

Both builds train at the same time, each in a process of its own, and are given turns of a few
steps: before, now, now, before, ... The tracker's process works during all turns; what it takes is
added to the side that has it.

What is watched is a step, whatever it computes, and the demo's step is long: a cost of some
microseconds does not show in it on a machine with a noise of percents. So it is measured in short
steps of as many micro-batches, and compared with a step of the demo.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from benchmarks.results.record import ROOT, Check, Options, print_table

CLAIM = "bar, trackers and meters cost less than half a percent of a step"
BEFORE = "f5e4807"
"""The last commit without trackers, without `why` and without measured steps."""
WARM_UP = 2
MOST_PERCENT = 0.5
_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_MODEL = (
    "--model=resnet18", "--augment=none", "--lr=0.0001", "--threads=1", "--loader-workers=0",
    "--no-validate", "--epochs=1", "--synthetic-samples=1000000", "synthetic",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is trained: eight micro-batches a step. turn: steps of one; pairs: of turns."""

    name: str
    words: tuple[str, ...]
    turn: int
    pairs: int


SHORT = Case(
    name="short steps",
    words=("--image-size=40", "--batch-size=8", "--microbatch-size=1"),
    turn=5,
    pairs=30,
)
DEMO = Case(
    name="the demo's",
    words=("--image-size=64", "--batch-size=64", "--microbatch-size=8"),
    turn=2,
    pairs=10,
)


@dataclass(slots=True)
class Side:
    """One build that trains.

    wall_s, processor_s: of each turn, per step. num_steps: of a turn.
    """

    root: Path
    num_steps: int
    process: subprocess.Popen[bytes]
    going: int
    told: int
    wall_s: list[float] = field(default_factory=list)
    processor_s: list[float] = field(default_factory=list)

    def turn(self, *, is_kept: bool = True) -> None:
        """Does one."""
        os.write(self.going, b"go\n")
        took = self.listen()
        if is_kept:
            self.wall_s.append(took["wall_s"] / self.num_steps)
            self.processor_s.append(took["processor_s"] / self.num_steps)

    def listen(self) -> dict[str, float]:
        """What it says next."""
        line = b""
        while not line.endswith(b"\n"):
            more = os.read(self.told, 4096)
            if not more:
                raise RuntimeError(f"the build {self.root} ended with {self.process.wait()}")
            line += more
        took = json.loads(line)
        if Path(took["root"]) != self.root:
            raise RuntimeError(f"trains with {took['root']}, not with {self.root}")
        return {name: took[name] for name in ("wall_s", "processor_s")}

    def helpers_s(self) -> float:
        """Processor time of what it has started."""
        times = (p.cpu_times() for p in psutil.Process(self.process.pid).children(recursive=True))
        return sum(t.user + t.system for t in times)


def skip_reason() -> str:
    """Why it cannot run here; empty: it can."""
    done = subprocess.run(
        ["git", "-C", str(ROOT), "cat-file", "-e", f"{BEFORE}^{{commit}}"],
        capture_output=True,
        check=False,
    )
    return "" if done.returncode == 0 else f"commit {BEFORE} is not in this checkout"


def run(options: Options) -> None:
    """Measures, prints a table and records the result."""
    trackers = [name for name in _TRACKERS if find_spec(name)]
    rows: list[list[str]] = []
    result: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="bundlerun-watch-") as temp:
        folder = Path(temp)
        with _checkout(folder / "before") as old:
            found = {
                case: _measured(case, options.rounds_or(case.pairs), old, folder, trackers)
                for case in (SHORT, DEMO)
            }
    for case, (before, now, helper_s) in found.items():
        for kind, old_s, now_s in (
            ("time", before.wall_s, now.wall_s),
            ("processor", before.processor_s, [s + helper_s for s in now.processor_s]),
        ):
            name = f"{case.name}, {kind}"
            more_s = median(b - a for a, b in zip(old_s, now_s, strict=True))
            rows.append([name, *(_ms(median(times)) for times in (old_s, now_s)), _ms(more_s)])
            result[name] = {"before_s": old_s, "now_s": now_s, "more_s": more_s}
        rows.append([f"{case.name}, of that in trackers' processes", "", _ms(helper_s), ""])
    print_table(["a step, ms", "before", "now", "median of pairs"], rows)
    more_s = result[f"{SHORT.name}, processor"]["more_s"]
    demo_s = median(result[f"{DEMO.name}, processor"]["before_s"])
    name = "percent of the demo's step, processor time, at most"
    options.record(
        "watching",
        {"before": BEFORE, "trackers": trackers, "load": os.getloadavg(), **result},
        [Check(name, 100 * more_s / demo_s, MOST_PERCENT)],
    )


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}"


def _measured(
    case: Case, pairs: int, old: Path, folder: Path, trackers: list[str]
) -> tuple[Side, Side, float]:
    """Both sides, and the processor time per step of the trackers' processes."""
    words = [f"--tracker={','.join(trackers)}"] if trackers else []
    folder = folder / case.name.replace(" ", "-")
    with ExitStack() as stack:
        before = stack.enter_context(_side(case, old, folder / "0", [], has_bar=False))
        now = stack.enter_context(_side(case, ROOT, folder / "1", words, has_bar=True))
        for side in (before, now):
            side.listen()  # it is at its first step
        for _ in range(WARM_UP):
            before.turn(is_kept=False)
            now.turn(is_kept=False)
        helpers_s = now.helpers_s()
        for number in range(pairs):
            for side in (before, now) if number % 2 else (now, before):
                side.turn()
        # More than a run would have: they look at the history during the other side's turns, too.
        return before, now, (now.helpers_s() - helpers_s) / (pairs * case.turn)


@contextmanager
def _checkout(folder: Path) -> Iterator[Path]:
    """The build before, in a folder of its own."""
    git = ["git", "-C", str(ROOT), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), BEFORE], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


@contextmanager
def _side(
    case: Case, root: Path, run_dir: Path, words: list[str], *, has_bar: bool
) -> Iterator[Side]:
    going, go = os.pipe()
    told, tell = os.pipe()
    script = ROOT / "benchmarks" / "workload" / "paced.py"
    command = [sys.executable, str(script), str(going), str(tell), str(case.turn)]
    environ = {**os.environ, "PYTHONPATH": str(root), "TERM": "xterm", "WANDB_MODE": "offline"}
    environ |= {"TRACKIO_DIR": str(run_dir / "trackio"), "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        screen = _screen(stack) if has_bar else subprocess.DEVNULL
        process = subprocess.Popen(
            [*command, f"--run-dir={run_dir}", *words, *case.words, *_MODEL],
            env=environ,
            cwd=root,
            pass_fds=(going, tell),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=screen,
        )
        os.close(going)
        os.close(tell)
        try:
            yield Side(root, case.turn, process, go, told)
        finally:
            os.close(go)
            process.kill()
            process.wait()
            os.close(told)


def _screen(stack: ExitStack) -> int:
    """A terminal that nobody looks at, as standard error."""
    seen, screen = pty.openpty()
    stack.callback(os.close, screen)

    def read() -> None:
        try:
            while os.read(seen, 65536):
                pass
        except OSError:  # its last process has ended
            os.close(seen)

    threading.Thread(target=read, daemon=True).start()
    return screen
