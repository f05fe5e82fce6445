"""The memory that `bundlerun plan --memory` foresees for each rank, against what the rank had.

Two ranks, a stage each, are forked from a process that has torch, as `bundlerun run` forks them,
and train for three steps, in which all comes to be that a rank ever has: optimizer state after the
first, both slots of a snapshot after the second. The most that a rank had at once is the kernel's
own counter of resident pages (VmHWM), less what counts for others when there are about as many: of
a page that n processes map, (n-1)/n. Pages of files (libraries) count for neither side, as their
share depends on what else runs on the machine.

The allocator is left as it is: glibc keeps what it has given back, up to a limit that grows with
the largest block so far. So a rank has somewhat more than what is alive, and never less.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from benchmarks.cluster.trained_ranks import Peak, own_anonymous, peaks_of_run
from benchmarks.results.record import Check, Options, print_table
from bundlerun.launcher.choices import ScheduleName
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.candidate import Candidate, RankMemory, Request
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.memory.fits import equal_cuts
from bundlerun.launcher.planning.memory.ranks import rank_memory
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.train_argv import read_train_argv
from bundlerun.workers import train

CLAIM = "the memory of a rank is foreseen within 5 % (median), 12 % at worst"
MEDIAN, WORST = 0.05, 0.12
NUM_STAGES = 2
MICROBATCH = 8
NUM_MICROBATCHES = 4
STEPS = 3
TIMEOUT_S = 600.0
MODELS = (
    *("resnet18", "resnet34", "resnet50", "wide_resnet50_2", "resnext50_32x4d"),
    *("vgg11", "vgg16_bn", "alexnet", "squeezenet1_0", "squeezenet1_1"),
    *("densenet121", "mobilenet_v2", "mobilenet_v3_large", "mnasnet1_0", "efficientnet_b0"),
    *("shufflenet_v2_x1_0", "regnet_y_400mf", "regnet_x_800mf", "convnext_tiny", "swin_t"),
)
SCHEDULES: tuple[ScheduleName, ...] = ("1f1b", "gpipe", "zero-bubble", "interleaved")
OPTIONS = (
    *(f"--batch-size={MICROBATCH * NUM_MICROBATCHES}", f"--microbatch-size={MICROBATCH}"),
    *("--image-size=64", "--augment=none", "--no-validate", "--synthetic-samples=512"),
    *("--snapshot-steps=1", "--sync=local-master"),
)
_MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rank of one run; bytes."""

    model: str
    schedule: ScheduleName
    stage: int
    measured: Peak
    foreseen: RankMemory

    @property
    def error(self) -> float:
        """What was foreseen over what was there, less 1."""
        return self.foreseen.total / self.measured.own - 1


def run(options: Options) -> None:
    """Measures all models with all schedules."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        for model in MODELS:
            if options.wants(model):
                for row in measured(model, Path(folder)):
                    rows.append(row)
                    print(_line(row), flush=True)
    report(options, rows)


def report(options: Options, rows: list[Row]) -> None:
    """Prints a table of the models, and records all."""
    models = dict.fromkeys(row.model for row in rows)
    table = []
    for model in models:
        errors = [abs(row.error) for row in rows if row.model == model]
        table.append((model, median(errors), max(errors)))
    print_table(("model", "median error", "worst"), table)
    errors = [abs(row.error) for row in rows]
    checks = [
        Check(f"{len(rows)} ranks: median error, at most", median(errors), MEDIAN),
        Check(f"{len(rows)} ranks: worst error, at most", max(errors), WORST),
    ]
    found = [
        f"{row.model} {row.schedule} {row.stage}: {row.measured.own}, {row.foreseen.total}"
        for row in rows
    ]
    head = "model schedule stage: measured, foreseen"
    options.record("memory_forecast", {"unit": "bytes", head: found}, checks)


def _line(row: Row) -> str:
    return (
        f"{row.model}, {row.schedule}, stage {row.stage}: {row.measured.own / _MIB:.0f} MiB, "
        f"foreseen {row.foreseen.total / _MIB:.0f}, {row.error:+.1%}"
    )


def measured(model: str, folder: Path) -> Iterator[Row]:
    """Yields the ranks of the runs of a model, by schedule."""
    words = [f"--model={model}", *OPTIONS]
    profile = _apart(lambda file: _write_profile(words, file), folder / f"{model}.json")
    profile = replace(profile, program_bytes=own_anonymous())
    for schedule in SCHEDULES:
        place = folder / f"{model}-{schedule}"
        place.mkdir()
        options = options_of(profile, words, schedule)
        peaks = peaks_of_run(options, NUM_STAGES, place / "run", steps=STEPS, timeout_s=TIMEOUT_S)
        yield from rows_of(profile, model, schedule, peaks)


def options_of(profile: Profile, words: list[str], schedule: ScheduleName) -> list[str]:
    """The options of a run that is cut as it is foreseen."""
    plan, boundaries = _plan(profile, schedule), profile.by_samples[0].boundaries
    return [
        *words,
        f"--shape={plan.shape}",
        f"--schedule={schedule}",
        f"--chunks={plan.chunks}",
        f"--cut={','.join(boundaries[number].name for number in plan.cuts)}",
        *([f"--cutter={profile.cutter}"] if profile.cutter else []),
        "synthetic",
    ]


def rows_of(
    profile: Profile, model: str, schedule: ScheduleName, peaks: list[Peak]
) -> Iterator[Row]:
    """Yields a row for each rank of a run."""
    kind = NodeKind(name="here", count=1, devices=NUM_STAGES, host=Host(cores=os.cpu_count() or 1))
    here = Cluster(kinds=(kind,), between=Link(bytes_per_s=float("inf")))
    request = Request(batch_size=MICROBATCH * NUM_MICROBATCHES)
    foreseen = rank_memory(profile, _plan(profile, schedule), here, request)
    for stage, (peak, memory) in enumerate(zip(peaks, foreseen, strict=True)):
        yield Row(model=model, schedule=schedule, stage=stage, measured=peak, foreseen=memory)


def _plan(profile: Profile, schedule: ScheduleName) -> Candidate:
    chunks = 2 if schedule == "interleaved" else 1
    return Candidate(
        shape=Shape((1,) * NUM_STAGES),
        cuts=equal_cuts(profile, MICROBATCH, NUM_STAGES * chunks),
        schedule=schedule,
        sync="local-master",
        samples=MICROBATCH,
        chunks=chunks,
    )


def _write_profile(words: list[str], file: Path) -> None:
    argv = [*words, f"--run-dir={file.with_suffix('')}", "synthetic"]
    config = read_train_argv(argv, os.environ).value
    profile_file.write(file, train.profiled(config, [MICROBATCH]))


def _apart(act: Callable[[Path], None], file: Path) -> Profile:
    """The profile that `act` writes, in a process of its own: this one stays as it is."""
    pid = os.fork()
    if not pid:
        code = 1
        try:
            act(file)
            code = 0
        finally:
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    if status:
        raise RuntimeError(f"no profile: {os.waitstatus_to_exitcode(status)}")
    return profile_file.from_plain(json.loads(file.read_text(encoding="utf-8")))
