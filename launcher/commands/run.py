"""`bundlerun run`: counts this node's devices, plans, and starts its ranks."""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bundlerun.launcher.agreement.agreed import Terms, terms_of
from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.agreement.continuation import (
    changed_lines,
    has_begun,
    unlike_lines,
    why_done,
)
from bundlerun.launcher.agreement.options import read_like
from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import open_console, tell
from bundlerun.launcher.deciding.decision import is_asked
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import read_hardware
from bundlerun.launcher.layout.prospects import Prospects
from bundlerun.launcher.layout.topology import NONE_FORESEEN
from bundlerun.launcher.meeting.default_folder import NO_FOLDER, default_folder, entered
from bundlerun.launcher.meeting.launchers import check_one_per_node, torchrun_variables
from bundlerun.launcher.meeting.network import Meeting, resolve_meeting
from bundlerun.launcher.meeting.node_name import claimed_name
from bundlerun.launcher.meeting.site import site_defaults, site_job
from bundlerun.launcher.models.name import check_adapters, check_model
from bundlerun.launcher.models.recipes import check_recipe
from bundlerun.launcher.models.weight_files import find_weights, source_of
from bundlerun.launcher.options.declared import Resolved, options_of, resolve, said
from bundlerun.launcher.options.endpoints import text_of_endpoints
from bundlerun.launcher.options.like import Like
from bundlerun.launcher.options.usage import check_variables
from bundlerun.launcher.plan import LaunchPlan, plan_here
from bundlerun.launcher.planned.document import plan_json
from bundlerun.launcher.planned.memory import known_shortfalls
from bundlerun.launcher.planned.picture import plan_text
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.preflight import (
    check_data,
    check_torch,
    check_writable,
)
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.holder import Holder, job_of_one_node
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.known import check_trackers
from bundlerun.launcher.train_argv import toml_of, train_config

if TYPE_CHECKING:
    from bundlerun.launcher.deciding.decide import Decided


def read_configs(
    args: argparse.Namespace, environ: Mapping[str, str], *, default_data: str = ""
) -> tuple[Resolved[TrainConfig], Resolved[LaunchConfig]]:
    """The training and the launch options.

    Args:
        default_data: DATA where nobody gives one.

    Raises:
        ConfigError: a value is wrong.
    """
    check_variables(environ, (TrainConfig, LaunchConfig))
    toml, name = toml_of(args, TrainConfig, LaunchConfig)
    like = like_of(args, environ, toml)
    train = train_config(
        args, environ=environ, toml=toml, toml_name=name, default_data=default_data, like=like
    )
    # What the batch system has given this job is not that of an earlier one.
    site = {**like.launch, **site_options(environ, vars(args), toml)}
    launch = resolve(
        LaunchConfig, vars(args), environ=environ, toml=toml, toml_name=name, site=site
    )
    return with_folder(train, launch, environ), launch


def like_of(
    args: argparse.Namespace, environ: Mapping[str, str], toml: Mapping[str, object]
) -> Like:
    """What `--like` takes over.

    Raises:
        ConfigError: there is no such run.
    """
    if not args.like:
        return Like()
    typed = partial(said, given=vars(args), environ=environ, toml=toml)
    is_said = {f.name: bool(typed(f.name)) for f in options_of(TrainConfig)}
    node = typed("node_name") or socket.gethostname()
    like = read_like(run_paths(args.like), node, is_said)
    for option in like.unknown:
        say(f"{like.name}: option {option!r} is none of this version, and is left out")
    return like


def with_folder(
    train: Resolved[TrainConfig], launch: Resolved[LaunchConfig], environ: Mapping[str, str]
) -> Resolved[TrainConfig]:
    """Fills in the run folder; it stays empty where several nodes would not agree on one."""
    given = train.value.run_dir
    is_typed = sys.stdin is not None and sys.stdin.isatty()
    folder = entered(Path(given)) if given else default_folder(launch, environ, is_typed=is_typed)
    return replace(train, value=replace(train.value, run_dir=str(folder or "")))


def site_options(
    environ: Mapping[str, str], given: Mapping[str, object], toml: Mapping[str, object]
) -> dict[str, tuple[str, str]]:
    """Launch options that torchrun's variables give, and else the batch system.

    Args:
        given: what was typed.
        toml: what a file says.
    """
    found = torchrun_variables(environ)
    typed = partial(said, given=given, environ=environ, toml=toml)
    given_there = site_defaults(environ, lambda name: typed(name) or found.get(name, ("", ""))[1])
    return given_there | {
        name: (f"environment {variable}", text) for name, (variable, text) in found.items()
    }


def make_plan(
    train: Resolved[TrainConfig],
    launch: Resolved[LaunchConfig],
    environ: Mapping[str, str],
    meeting: Meeting,
    node_name: str,
    prospects: Prospects = NONE_FORESEEN,
) -> LaunchPlan:
    """The plan for this machine.

    Raises:
        BundleError: it cannot run what is asked.
    """
    return plan_here(
        train,
        launch,
        hardware=read_hardware(environ),
        meeting=meeting,
        node_name=node_name,
        environ=environ,
        prospects=prospects,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """What this node would start, under a name that no other agent of the job has meanwhile."""

    plan: LaunchPlan
    holder: Holder
    """Who will claim the run folder."""

    def claim(self, terms: Terms) -> Claim:
        """The claim of the run folder, looked at but not made; tells what has changed in `terms`.

        Raises:
            ConfigError: a folder cannot be written to, or another job has it.
        """
        paths = RunPaths(Path(self.plan.train.value.run_dir))
        check_writable(paths.root, "--run-dir")
        check_writable(Path(self.plan.here.log_dir), "--log-dir")
        train = self.plan.train.value
        if train.snapshot == "on" and train.snapshot_dir:
            check_writable(Path(train.snapshot_dir), "--snapshot-dir")
        claim = Claim(paths, self.holder, say)
        claim.check()
        for line in changed_lines(paths, terms):
            say(line)
        return claim


@contextmanager
def planned(
    train: Resolved[TrainConfig], launch: Resolved[LaunchConfig], environ: Mapping[str, str]
) -> Iterator[Planned]:
    """The plan of this node.

    Raises:
        ConfigError: it has none, or the nodes have no way to meet.
    """
    # First of all: each of several processes on a node would start all of its ranks.
    if not launch.value.standalone:
        check_one_per_node(environ, launch.value.max_nodes)
    meeting = resolve_meeting(launch.value)
    if not train.value.run_dir:
        raise ConfigError(NO_FOLDER)
    found = NONE_FORESEEN
    if is_asked(train):
        # What can be known to be wrong is told before seconds are spent on a profile.
        check_work(train.value)
        decided = without_auto(train, launch, environ, meeting.local_addr)
        train, found = decided.train, decided.prospects
    job = f"{launch.value.rdzv_id} {Path(train.value.run_dir).absolute()}"
    with claimed_name(job, launch.value.node_name) as name:
        plan = make_plan(train, launch, environ, meeting, name, found)
        has_choice = plan.train.value.shape.others and plan.launch.value.max_nodes > 1
        if has_choice and not found.rows:
            from bundlerun.launcher.commands.prospects import foreseen_shapes  # seldom

            found = foreseen_shapes(plan, environ, say)
            plan = make_plan(train, launch, environ, meeting, name, found)
        yield Planned(
            plan=plan,
            holder=holder_of(launch.value, environ, name, meeting),
        )


def without_auto(
    train: Resolved[TrainConfig],
    launch: Resolved[LaunchConfig],
    environ: Mapping[str, str],
    local_addr: str = "",
    nodes: Sequence[int] = (),
) -> Decided:
    """What the planner has chosen, for a configuration that leaves something to it.

    Args:
        local_addr: at which the other nodes reach this one; empty: nobody says.
        nodes: devices of each, for machines that are not there.

    Raises:
        BundleError: the data or the model does not do for it, or no plan fits.
    """
    from bundlerun.launcher.deciding.decide import decided  # not for those who say what they want

    return decided(
        train,
        launch.value,
        hardware=read_hardware(environ),
        environ=environ,
        local_addr=local_addr,
        nodes=nodes,
        tell=say,
    )


def check_work(train: TrainConfig) -> None:
    """Raises BundleError for what can be known to be wrong with model, recipe and data."""
    check_torch()
    check_model(train.model, train.recipe)
    check_recipe(train.recipe, train.tokenizer)
    check_data(train.data, train.recipe)
    check_adapters(train.lora)


def run(args: argparse.Namespace) -> int:
    """Starts the ranks and returns when they have ended; or shows the plan."""
    train, launch = read_configs(args, os.environ)
    paths = RunPaths(Path(train.value.run_dir))
    check_cluster(launch.value)
    with planned(train, launch, os.environ) as start:
        plan = start.plan
        train = plan.train
        if args.dry_run:
            print(plan_json(plan) if args.json else plan_text(plan))
            return EXIT_DONE
        from bundlerun.launcher.doctor.start import check_start  # not for --help

        check_torch()
        check_start(os.environ, gpus_of(plan), say)
        check_work(train.value)
        check_trackers(train.value.trackers)
        source = source_of(train.value.init_from, train.value.model, train.value.recipe)
        if source and not has_begun(paths):
            find_weights(source)
        terms = terms_of(train.value)
        claim = start.claim(terms)
        if args.like:
            for line in unlike_lines(run_paths(args.like), terms):
                say(f"not as in {args.like}: {line}")
        done = why_done(paths, train.value)
        if done:
            # No rank will look at its input; what is wrong with that is not to be hidden.
            check = getattr(importlib.import_module(plan.module), "check_inputs", None)
            if check:
                check(train.value)
            say(done)
            return EXIT_DONE
        keep_cluster(launch.value, paths)
        # No refusal: a profile foresees, and the machine may have other memory than it says.
        for line in known_shortfalls(plan):
            say(f"warning: by the profile in the run folder, {line}")
        from bundlerun.launcher.agent import elastic

        return elastic.launch(plan, say=say, claim=claim)


def check_cluster(launch: LaunchConfig) -> None:
    """Raises ConfigError where --cluster describes none."""
    if launch.cluster:
        read_cluster(Path(launch.cluster))


def keep_cluster(launch: LaunchConfig, paths: RunPaths) -> None:
    """Puts --cluster into the run folder, where the rank that reports looks for it."""
    if launch.cluster:
        write_text(paths.cluster, Path(launch.cluster).read_text(encoding="utf-8"))


def gpus_of(plan: LaunchPlan) -> int:
    """GPUs that the ranks of this node run on; 0 for the CPU."""
    return plan.here.devices.count if plan.here.devices.kind == "gpu" else 0


def holder_of(
    launch: LaunchConfig, environ: Mapping[str, str], node_name: str, meeting: Meeting
) -> Holder:
    """Who claims the run folder: this agent, for a job that its other nodes call the same."""
    of_site = site_job(environ)
    # The parts of a heterogeneous job have ids of their own, and are told one for all.
    if of_site is not None and launch.rdzv_id == of_site.rdzv_id and not launch.standalone:
        job = of_site.holder
    elif launch.max_nodes == 1:
        job = job_of_one_node()
    else:
        # With addresses: nodes may write the names in many ways.
        job = f"{launch.rdzv_id} at {text_of_endpoints(meeting.endpoints)}"
    return Holder.of_process(job, "bundlerun run", node=node_name)


def say(text: str) -> None:
    """Tells the user, on stderr."""
    open_console()
    tell(text)
