"""`bundlerun submit`: everything that can be checked before the queue, then sbatch."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from bundlerun.launcher.commands.arguments.run import add_config_arguments
from bundlerun.launcher.commands.run import read_configs
from bundlerun.launcher.doctor.start import check_installed
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.launch_config import node_range
from bundlerun.launcher.meeting.default_folder import new_folder
from bundlerun.launcher.models.name import check_model
from bundlerun.launcher.one_device import in_one_stage
from bundlerun.launcher.options.parser import Parser, parsed
from bundlerun.launcher.plan import WORKER_MODULE, plan_elsewhere
from bundlerun.launcher.preflight import check_data, check_torch, check_writable
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import train_words
from bundlerun.slurm.checks import check_devices, check_interval, check_queue, site_notes
from bundlerun.slurm.jobs import Slurm
from bundlerun.slurm.render import Kind, script
from bundlerun.slurm.request import Request, script_of


def run(args: argparse.Namespace) -> int:
    """Submits a job, or prints what would be submitted.

    Raises:
        ConfigError: an option is wrong, or the run folder is in use.
        BundleError: something that the run needs is not there, or Slurm refuses.
    """
    words = train_words(args.words)
    request = request_of(args, tuple(without_run_dir(words)))
    parser = Parser(prog="bundlerun submit ... --")
    add_config_arguments(parser)
    parser.complete()
    train, launch = read_configs(parsed(parser, words), os.environ)
    run_dir = Path(train.value.run_dir or new_folder()).absolute()
    # The plan is for the cluster's nodes: this machine, a login node, may have no GPU at all.
    nodes = (request.gpus_per_node or launch.value.slots,) * request.nodes[1]
    if nodes == (1,):
        train = in_one_stage(train)
    check_devices(request, train.value, launch.value)
    plan_elsewhere(nodes, train, launch)
    try:
        text = script(script_of(request, run_dir, sys.executable))
    except ValueError as exc:
        raise ConfigError(f"{exc}; Slurm has no way to write that") from exc
    # Before anything that asks Slurm: a dry run works where there is none.
    if args.dry_run:
        print(text, end="")  # noqa: T201
        return EXIT_DONE
    slurm = Slurm()
    for note in site_notes(slurm.config()):
        say(f"note: {note}")
    check_torch()
    check_installed(os.environ, say)
    check_model(train.value.model, train.value.recipe)
    check_data(train.value.data, train.value.recipe)
    check_writable(run_dir, "--run-dir")
    # All checks come before sbatch: an error now costs seconds, in the queue it costs hours.
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
        nodes=node_range(args.nodes, "--nodes", separators=":-"),
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
