"""`bundlerun logs`: what the ranks of a run have printed, on which node soever."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.errors import EXIT_DONE, ConfigError, nearest
from bundlerun.launcher.run_folder.events import read_events
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.rank_logs import (
    RankLog,
    last_lines,
    lines_after,
    newest,
    rank_logs,
)

PERIOD_S = 0.5


def run(args: argparse.Namespace) -> int:
    """Prints them.

    Raises:
        ConfigError: there is no such run, node, rank or attempt, or nothing is kept.
    """
    paths = run_paths(args.run_dir)
    if args.lines < 0:
        raise ConfigError(f"--lines {args.lines} is negative; give a number of lines, or 0 for all")
    logs = _chosen(paths, args)
    if not logs and not args.follow:
        raise ConfigError(_why_none(paths, args))
    places = {}
    for log in logs:
        lines, places[log.path] = last_lines(log.path, args.lines)
        if len(logs) > 1:
            print(f"==> {log.title} <==")
        for line in lines:
            print(line)
    if args.follow:
        for log, line in _new_lines(paths, args, places):
            print(f"{log.label} | {line}", flush=True)
    return EXIT_DONE


def _new_lines(
    paths: RunPaths, args: argparse.Namespace, places: dict[Path, int]
) -> Iterator[tuple[RankLog, str]]:
    is_over = False
    while True:
        for log in _chosen(paths, args):
            lines, places[log.path] = lines_after(log.path, places.get(log.path, 0))
            yield from ((log, line) for line in lines)
        if is_over:
            return
        # Once more after the end: what came before it is shown.
        is_over = read_outcome(paths) is not None
        time.sleep(0 if is_over else PERIOD_S)


def _chosen(paths: RunPaths, args: argparse.Namespace) -> list[RankLog]:
    logs = rank_logs(paths, read_events(paths.events))
    nodes = sorted({log.node for log in logs})
    if args.node and nodes and args.node not in nodes:
        raise ConfigError(f"--node {args.node!r} is not in the run; {nearest(args.node, nodes)}")
    logs = [log for log in logs if log.node == args.node] if args.node else logs
    if args.attempt == "last":
        logs = newest(logs)
    elif args.attempt.isdecimal():
        logs = [log for log in logs if log.attempt == int(args.attempt)]
    elif args.attempt != "all":
        raise ConfigError(f"--attempt {args.attempt!r} is neither a number nor last nor all")
    if args.rank is None:
        return logs
    by_rank = [log for log in logs if log.rank == args.rank]
    if not args.node:
        return by_rank
    return by_rank or [log for log in logs if log.local_rank == args.rank]


def _why_none(paths: RunPaths, args: argparse.Namespace) -> str:
    logs = rank_logs(paths, read_events(paths.events))
    if not logs:
        return (
            f"no output of ranks is kept in {str(paths.logs)!r}; a run by torchrun itself has it "
            "where --log-dir says"
        )
    return (
        f"nothing of that choice; there are ranks {_numbers(log.rank for log in logs)} on "
        f"{', '.join(sorted({log.node for log in logs}))}, attempts "
        f"{_numbers(log.attempt for log in logs)}"
    )


def _numbers(numbers: Iterator[int] | Sequence[int]) -> str:
    return ", ".join(map(str, sorted({n for n in numbers if n >= 0}))) or "none"
