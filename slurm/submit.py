"""`bundlerun submit`: everything that can be checked before the queue, then sbatch."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.commands.run import add_config_arguments, read_configs
from launcher.config import TrainConfig
from launcher.errors import EXIT_DONE, ConfigError
from launcher.launch_config import LaunchConfig
from launcher.options import kebab
from launcher.paths import RunPaths
from launcher.plan import WORKER_MODULE, plan_elsewhere
from launcher.preflight import check_data, check_torch, check_writable
from launcher.topology import bundle_size
from slurm.claim import check_free
from slurm.jobs import TAG, Slurm, seconds_of
from slurm.render import DEFAULTS, DIRECTIVES, LAST_CHECKPOINT_S, Kind, Script, script, setting

SET_BY_SCRIPT = ("--nnodes", "--rdzv-endpoint", "--rdzv-id", "--node-name", "--standalone")
SHORT_KILL_WAIT_S = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A job that is to be submitted.

    Args:
        nodes: fewest and most, without spares.
        sbatch: further options for sbatch, words.
    """

    kind: Kind
    nodes: tuple[int, int]
    spares: int
    gpus_per_node: int
    cpus_per_node: int
    time: str
    job_name: str
    partition: str
    account: str
    array: str
    requeue_budget: int
    sbatch: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        least, most = self.nodes
        if self.kind is not Kind.BUNDLE and (least != most or self.spares):
            raise ConfigError(
                f"--kind {self.kind.value} has a fixed number of nodes; give --nodes {most}, no "
                "--spares, or --kind bundle"
            )
        if self.kind is Kind.ARRAY and most != 1:
            raise ConfigError(f"--kind array runs on one node each; --nodes {most} is for bundle")
        if (self.kind is Kind.ARRAY) != bool(self.array):
            raise ConfigError("--array and --kind array go together, such as --array 0-3")
        for flag, value in (
            ("--spares", self.spares),
            ("--gpus-per-node", self.gpus_per_node),
            ("--cpus-per-node", self.cpus_per_node),
            ("--requeue-budget", self.requeue_budget),
        ):
            if value < 0:
                raise ConfigError(f"{flag} {value} must be 0 or more")
        if self.time and limit_seconds(self.time) <= LAST_CHECKPOINT_S:
            raise ConfigError(
                f"--time {self.time} leaves nothing to train in: {LAST_CHECKPOINT_S} s of it are "
                "for the last checkpoint"
            )
        for flag in (word.partition("=")[0] for word in self.words):
            if flag in SET_BY_SCRIPT:
                raise ConfigError(f"{flag} is set by the batch script; leave it out")

    @property
    def max_nodes(self) -> int:
        """Nodes to ask for at most, spares too."""
        return self.nodes[1] + self.spares


def script_of(request: Request, run_dir: Path, python: str) -> Script:
    """The batch script of a request.

    Args:
        run_dir: absolute.
        python: path of the interpreter that the nodes are to use.
    """
    least = request.nodes[0]
    count = f"{least}-{request.max_nodes}" if least < request.max_nodes else str(least)
    wanted: list[tuple[str, str | None]] = [
        ("job-name", request.job_name),
        ("comment", f"{TAG}{run_dir}"),
        ("nodes", count),
    ]
    optional = (
        ("array", request.array),
        ("gpus-per-node", str(request.gpus_per_node or "")),
        ("mincpus", str(request.cpus_per_node or "")),
        ("time", request.time),
        ("partition", request.partition),
        ("account", request.account),
    )
    wanted += [(name, value) for name, value in optional if value]
    wanted.append(("output", "slurm-%A_%a.out" if request.array else "slurm-%j.out"))
    values = {
        "RUN_DIR": str(run_dir),
        "MIN_NODES": str(least),
        "SPARES": str(request.spares),
        "REQUEUE_BUDGET": str(request.requeue_budget),
        "PYTHON": python,
    }
    behind = '/"$SLURM_ARRAY_TASK_ID"' if request.kind is Kind.ARRAY else ""
    settings = tuple(
        setting(each.name, values[each.name], is_fixed=True, behind=behind)
        if each.name == "RUN_DIR"
        else setting(each.name, values[each.name], is_fixed=True)
        for each in DEFAULTS[request.kind].settings
    )
    return Script(
        kind=request.kind,
        title=("Written by `bundlerun submit`.",),
        directives=(*wanted, *DIRECTIVES[request.kind]),
        settings=settings,
        words=request.words,
    )


def limit_seconds(text: str) -> int:
    """A time limit as Slurm reads it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        ConfigError: it is written otherwise.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not match:
        raise ConfigError(f"--time {text!r} is no time limit of Slurm's; write H:M:S or D-H:M:S")
    days, *parts = match.groups()
    first, second, third = (int(part or 0) for part in parts)
    if days is not None:
        return ((int(days) * 24 + first) * 60 + second) * 60 + third
    if parts[2] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second


def node_range(text: str) -> tuple[int, int]:
    """Reads `2:4`, `2-4` or `3` as fewest and most nodes.

    Raises:
        ConfigError: it is written otherwise.
    """
    match = re.fullmatch(r"(\d+)(?:[:-](\d+))?", text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= least <= most:
        raise ConfigError(f"--nodes {text!r} is neither a number of nodes nor MIN:MAX")
    return least, most


def check_devices(request: Request, train: TrainConfig, launch: LaunchConfig) -> None:
    """Raises ConfigError where the nodes asked for hold no bundle."""
    per_node = request.gpus_per_node or launch.slots
    if not per_node:
        raise ConfigError(
            "--gpus-per-node is missing; for nodes without GPUs give --devices cpu --slots N "
            "behind --"
        )
    size, least = bundle_size(train.shape), request.nodes[0]
    if per_node * least < size:
        raise ConfigError(
            f"{least} nodes of {per_node} devices do not hold one bundle of shape "
            f"{','.join(map(str, train.shape))} ({size} devices); give more --gpus-per-node or "
            "--nodes, or a smaller --shape"
        )


def check_interval(request: Request, train: TrainConfig, paths: RunPaths) -> None:
    """Raises ConfigError where an earlier start of the run shows that the time limit is too short.

    A job that ends before its first checkpoint would begin anew for ever.
    """
    step_s = seconds_per_step(paths)
    if not (request.time and train.checkpoint_steps and step_s):
        return
    limit, interval = limit_seconds(request.time), train.checkpoint_steps * step_s
    if limit <= interval:
        raise ConfigError(
            f"--time {request.time} ({limit} s) is shorter than --checkpoint-steps "
            f"{train.checkpoint_steps} of {step_s:.2g} s each; give a longer one, or fewer steps"
        )


def seconds_per_step(paths: RunPaths) -> float:
    """How long a step took when this run was last seen, seconds; 0 where nobody knows."""
    rows: list[Mapping[str, object]] = []
    try:
        with paths.metrics.open(encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                if row.get("kind") == "step":
                    rows = [*rows[-1:], row]
    except (OSError, ValueError):
        return 0.0
    if len(rows) < 2:
        return 0.0
    (first_s, first), (last_s, last) = ((row["time"], row["step"]) for row in rows)
    assert isinstance(first_s, float)
    assert isinstance(last_s, float)
    assert isinstance(first, int)
    assert isinstance(last, int)
    return (last_s - first_s) / (last - first) if last > first else 0.0


def check_queue(run_dir: Path, slurm: Slurm) -> None:
    """Raises ConfigError where a job in the queue has the run folder."""
    check_free(RunPaths(run_dir), None, slurm)
    for line in slurm.run(["squeue", "--me", "--noheader", "--format=%i|%T|%k"], "").splitlines():
        job_id, state, comment = [*line.split("|", 2), "", ""][:3]
        if comment.strip() == f"{TAG}{run_dir}":
            raise ConfigError(
                f"run folder {str(run_dir)!r} is in use by job {job_id} ({state}); give another "
                f"--run-dir, or scancel {job_id} first"
            )


def site_notes(config: Mapping[str, str]) -> Iterator[str]:
    """What of the site's settings a user should know."""
    mode = config.get("PreemptMode", "OFF")
    if "CANCEL" in mode:
        yield f"PreemptMode={mode}: a preempted job is cancelled here; submit it again to go on"
    kill_wait = seconds_of(config, "KillWait", SHORT_KILL_WAIT_S)
    if kill_wait < SHORT_KILL_WAIT_S:
        yield (
            f"KillWait={kill_wait}: a requeue by an operator leaves {kill_wait} s for the last "
            "checkpoint"
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun submit`."""
    parser.description = (
        "Check what can be checked before the queue, write a batch script, submit it. Options of "
        "`bundlerun run` and DATA come behind --."
    )
    add = parser.add_argument
    add("--nodes", default="1", metavar="MIN[:MAX]", help="nodes that train (default: 1)")
    add("--spares", type=int, default=0, help="nodes beside, which take a lost one's place")
    add("--gpus-per-node", type=int, default=0, metavar="N", help="GPUs of each node")
    add("--cpus-per-node", type=int, default=0, metavar="N", help="CPUs of each node, at least")
    add("--time", default="", help="time limit, H:M:S; the run goes on in the next start")
    add("--partition", default="", help="partition")
    add("--account", default="", help="account")
    add("--job-name", default="bundlerun", help="name of the job (default: bundlerun)")
    add(
        "--kind",
        choices=[kind.value for kind in Kind],
        default=Kind.BUNDLE.value,
        help="bundle: goes on without lost nodes; classic: all or nothing; array: many runs of one "
        "node (default: bundle)",
    )
    add("--array", default="", metavar="0-3", help="with --kind array: one run each")
    add("--requeue-budget", type=int, default=20, metavar="N", help="starts after the first (20)")
    add(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTIONS",
        help="further options for sbatch, such as --sbatch='--constraint=a100 --mail-type=END'",
    )
    add("--dry-run", action="store_true", help="print the script, submit nothing")
    add("words", nargs="*", metavar="-- OPTIONS DATA", help="as for bundlerun run")


def run(args: argparse.Namespace) -> int:
    """Submits a job, or prints what would be submitted."""
    words = kebab(args.words)
    request = request_of(args, tuple(without_run_dir(words)))
    parser = argparse.ArgumentParser(prog="bundlerun submit ... --", allow_abbrev=False)
    add_config_arguments(parser)
    train, launch = read_configs(parser.parse_args(words), os.environ)
    run_dir = Path(train.value.run_dir).absolute()
    check_devices(request, train.value, launch.value)
    plan_elsewhere((request.gpus_per_node or launch.value.slots,) * request.nodes[1], train, launch)
    try:
        text = script(script_of(request, run_dir, sys.executable))
    except ValueError as exc:
        raise ConfigError(f"{exc}; Slurm has no way to write that") from exc
    if args.dry_run:
        print(text, end="")  # noqa: T201
        return EXIT_DONE
    slurm = Slurm()
    for note in site_notes(slurm.config()):
        say(f"note: {note}")
    check_torch()
    check_data(train.value.data, train.value.recipe)
    check_writable(run_dir, "--run-dir")
    check_interval(request, train.value, RunPaths(run_dir))
    check_queue(run_dir, slurm)
    importlib.import_module(WORKER_MODULE).preflight(train.value)
    job_id = slurm.submit(request.sbatch, text)
    print(after(job_id, request, run_dir))  # noqa: T201
    return EXIT_DONE


def request_of(args: argparse.Namespace, words: tuple[str, ...]) -> Request:
    """The request that the options make.

    Raises:
        ConfigError: a value is wrong.
    """
    return Request(
        kind=Kind(args.kind),
        nodes=node_range(args.nodes),
        spares=args.spares,
        gpus_per_node=args.gpus_per_node,
        cpus_per_node=args.cpus_per_node,
        time=args.time,
        job_name=args.job_name,
        partition=args.partition,
        account=args.account,
        array=args.array,
        requeue_budget=args.requeue_budget,
        sbatch=tuple(word for text in args.sbatch for word in shlex.split(text)),
        words=words,
    )


def without_run_dir(words: list[str]) -> Iterator[str]:
    """The options without --run-dir, which stands on top of the script."""
    it = iter(words)
    for word in it:
        if word == "--run-dir":
            next(it, None)
        elif not word.startswith("--run-dir="):
            yield word


def after(job_id: int, request: Request, run_dir: Path) -> str:
    """What to type next."""
    folder = shlex.quote(str(run_dir))
    log = f"slurm-{job_id}_*.out" if request.array else f"slurm-{job_id}.out"
    return "\n".join(
        [
            f"job {job_id} is submitted; run folder {run_dir}",
            f"    tail -F {log}          what it says",
            f"    bundlerun status {folder}    how far it is",
            f"    bundlerun drain {folder}     write a checkpoint and stop",
            f"    scancel {job_id}                     stop for good",
        ]
    )


def say(text: str) -> None:
    """Tells the user, on stderr."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201
