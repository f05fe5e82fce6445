"""What it costs a run to be watched: bar, trackers and meters, beside the build before them.

Both builds train at the same time, each in a process of its own, and are given turns of a few
steps: before, now, now, before, ... The tracker's process works during all turns; what it takes is
added to the side that has it.

What is watched is a step, whatever it computes: its micro-batches, phases and numbers. So the cost
is measured where a step computes next to nothing, on a model with the layers of the demo's and few
channels, and compared with a step of the demo: microseconds do not show in a long step on a
machine with a noise of percents. The calls of a step are counted, too, which no noise changes.
Two processes of the same build differ as well, as their memory lies differently: so there are
several of each, and the interval is that of their means.
"""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from math import comb
from pathlib import Path
from statistics import median

import psutil

from benchmarks.cluster.waiting import comes_true
from benchmarks.results.record import ROOT, Check, Options, print_table
from bundlerun.launcher.run_folder.paths import RunPaths

CLAIM = "bar, trackers and meters cost less than half a percent of a step"
BEFORE = "f5e4807"
"""The last commit without trackers, without `why` and without measured steps."""
WARM_UP = 2
MOST_PERCENT = 0.5
_START_S = 300.0
_TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")
_ALL = (
    "--augment=none", "--lr=0.0001", "--threads=1", "--loader-workers=0", "--no-validate",
    "--epochs=1", "--synthetic-samples=1000000", "synthetic",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is trained: eight micro-batches a step.

    turn: steps of one. pairs: of turns. processes: of each build.
    """

    name: str
    words: tuple[str, ...]
    turn: int
    pairs: int
    processes: int


THIN = Case(
    name="thin layers",
    words=(
        f"--model={ROOT / 'benchmarks' / 'workload' / 'thin_resnet.py'}:build",
        "--image-size=40", "--batch-size=8", "--microbatch-size=1",
    ),
    turn=10,
    pairs=8,
    processes=8,
)  # fmt: skip
DEMO = Case(
    name="the demo's",
    words=("--model=resnet18", "--image-size=64", "--batch-size=64", "--microbatch-size=8"),
    turn=2,
    pairs=3,
    processes=1,
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

    def count(self) -> float:
        """Calls of Python functions, and of C functions from them, in a step of one more turn."""
        os.write(self.going, b"count\n")
        return self.listen()["calls"] / self.num_steps

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
        return {name: took[name] for name in ("wall_s", "processor_s", "calls")}

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
    """Measures, prints a table and records the result; `--rounds`: processes of each build."""
    trackers = [name for name in _TRACKERS if find_spec(name)]
    with tempfile.TemporaryDirectory(prefix="bundlerun-watch-") as temp:
        folder = Path(temp)
        with _checkout(folder / "before") as old:
            demo = _measured(DEMO, old, folder / "demo", trackers)
            thin = [
                _measured(THIN, old, folder / f"thin{number}", trackers)
                for number in range(options.rounds_or(THIN.processes))
            ]
    low, middle, high = median_interval([each.more_s for each in thin])
    rows = [
        ("a step of thin layers, before", *spread([each.before_s for each in thin])),
        ("the same, now", *spread([each.now_s for each in thin])),
        ("of that in trackers' processes", *spread([each.trackers_s for each in thin])),
        ("now more, pairs of processes", low, middle, high),
        ("the same, by the clock", *median_interval([each.more_wall_s for each in thin])),
        ("a step of the demo, before", "", demo.before_s, ""),
    ]
    print_table(["processor time, ms", "low", "median", "high"], [_in_ms(row) for row in rows])
    print_table(
        ["calls of a step", "before", "now", "more"],
        [
            (name, f"{a:.1f}", f"{b:.1f}", f"{b - a:.1f}")
            for name, a, b in (
                ("thin layers", thin[0].before_calls, thin[0].now_calls),
                ("the demo's", demo.before_calls, demo.now_calls),
            )
        ],
    )
    percent = [100 * seconds / demo.before_s for seconds in (low, middle, high)]
    print(f"of a step of the demo: {' to '.join(f'{p:.3f} %' for p in (percent[0], percent[2]))}")
    result: dict[str, object] = {
        "before": BEFORE,
        "trackers": trackers,
        "load": os.getloadavg(),
        "demo": asdict(demo),
        "thin": [asdict(each) for each in thin],
        "more_percent": percent,
    }
    name = "percent of the demo's step, upper end of the interval, at most"
    options.record("watching", result, [Check(name, percent[2], MOST_PERCENT)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """What a process of each build took for a step, seconds of processor time.

    before_s, now_s: medians of turns; the latter with `trackers_s`, that of trackers' processes.
    more_s: median of the differences of neighbouring turns. more_wall_s: the same, by the clock.
    before_calls, now_calls: of functions, in the rank's own thread.
    """

    before_s: float
    now_s: float
    trackers_s: float
    more_s: float
    more_wall_s: float
    before_calls: float
    now_calls: float


def median_interval(values: Sequence[float], confidence: float = 0.95) -> list[float]:
    """The median between the ends of its interval, which are among the values.

    How many values are below the true median is distributed as the heads of as many tosses; few
    values have no such interval, and get that from the least to the greatest.
    """
    found = sorted(values)
    cut = outside = 0
    # Left out at each end: as many as still leave the wanted share of all tosses inside.
    while cut < (len(found) - 1) // 2:
        outside += comb(len(found), cut)
        if 1 - 2 * (outside + comb(len(found), cut + 1)) / 2 ** len(found) < confidence:
            break
        cut += 1
    return [found[cut], median(found), found[len(found) - 1 - cut]]


def spread(values: Sequence[float]) -> list[float]:
    """Least, median, greatest."""
    return [min(values), median(values), max(values)]


def _in_ms(row: Sequence[object]) -> list[object]:
    return [each if not isinstance(each, float) else f"{1000 * each:.3f}" for each in row]


def _measured(case: Case, old: Path, folder: Path, trackers: list[str]) -> Pair:
    """A process of each build, in turns."""
    words = [f"--tracker={','.join(trackers)}"] if trackers else []
    paths = RunPaths(folder / "1")
    with ExitStack() as stack:
        before = stack.enter_context(_side(case, old, folder / "0", [], has_bar=False))
        now = stack.enter_context(_side(case, ROOT, folder / "1", words, has_bar=True))
        for side in (before, now):
            side.listen()  # it is at its first step
        for _ in range(WARM_UP):
            before.turn(is_kept=False)
            now.turn(is_kept=False)
        # Its start is no part of a step.
        files = [paths.tracker_journal(name) for name in trackers]
        if not comes_true(lambda: all(file.exists() for file in files), _START_S, 0.1):
            raise RuntimeError(f"trackers do not start: {', '.join(trackers)}")
        helpers_s = now.helpers_s()
        for number in range(case.pairs):
            for side in (before, now) if number % 2 else (now, before):
                side.turn()
        # More than a run would have: they look at the history during the other side's turns, too.
        helper_s = (now.helpers_s() - helpers_s) / (case.pairs * case.turn)
        before_calls, now_calls = before.count(), now.count()
    return Pair(
        before_s=median(before.processor_s),
        now_s=median(now.processor_s) + helper_s,
        trackers_s=helper_s,
        more_s=_more(before.processor_s, now.processor_s) + helper_s,
        more_wall_s=_more(before.wall_s, now.wall_s),
        before_calls=before_calls,
        now_calls=now_calls,
    )


def _more(before: Sequence[float], now: Sequence[float]) -> float:
    return median(b - a for a, b in zip(before, now, strict=True))


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
            [*command, f"--run-dir={run_dir}", *words, *case.words, *_ALL],
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
