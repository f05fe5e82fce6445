"""`bundlerun plan`: what would run where, for this machine or for others."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bundlerun.launcher.commands.arguments.plan import CONFIGURED
from bundlerun.launcher.commands.forecast import Foreseen, foreseen
from bundlerun.launcher.commands.plan_picture import Pictured, outputs_of, write_outputs
from bundlerun.launcher.commands.prospects import shown_shapes
from bundlerun.launcher.commands.run import make_plan, read_configs, without_auto
from bundlerun.launcher.commands.use.profile import made_profile
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.deciding.decision import is_asked
from bundlerun.launcher.deciding.shown import table
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.layout.survival.losses import Loss, losses
from bundlerun.launcher.layout.survival.words import loss_document, loss_lines
from bundlerun.launcher.layout.topology import NONE_FORESEEN
from bundlerun.launcher.meeting.network import as_typed
from bundlerun.launcher.plan import LaunchPlan, plan_elsewhere
from bundlerun.launcher.planned.document import plan_json
from bundlerun.launcher.planned.memory import (
    PlanMemory,
    device_kind,
    kept_profile,
    threads_of,
    typed_cuts,
)
from bundlerun.launcher.planned.picture import plan_text
from bundlerun.launcher.planning.cluster import MOST_DEVICES, Cluster
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.planning.forecast_words import forecast_document, forecast_lines
from bundlerun.launcher.planning.profile_request import ProfileRequest


def parse_nodes(text: str) -> tuple[int, ...]:
    """Reads `4x8,2x4` as devices per node: (8, 8, 8, 8, 4, 4).

    Raises:
        ConfigError: it is written otherwise.
    """
    nodes: list[int] = []
    num_devices = 0
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)x)?(\d+)\s*", part)
        if not match or int(match[1] or 1) < 1 or int(match[2]) < 1:
            raise ConfigError(f"--nodes {text!r} is not NODESxDEVICES[,...], such as 4x8,2x4")
        num_devices += int(match[2]) * int(match[1] or 1)
        if num_devices > MOST_DEVICES:
            raise ConfigError(
                f"--nodes {text!r} has more than {MOST_DEVICES:,} devices; a plan is for that many "
                "at most"
            )
        nodes += [int(match[2])] * int(match[1] or 1)
    return tuple(nodes)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def stage_costs(plan: LaunchPlan) -> list[str]:
    """Lines about the work of each stage, from the program that the ranks run."""
    if plan.config.shape.num_stages == 1:
        return ["one stage has all of the operations"]
    lines: list[str] = importlib.import_module(plan.module).costs(plan.config)
    return lines


def memory_of(plan: LaunchPlan, cluster: Cluster | None) -> tuple[PlanMemory, str]:
    """The memory of a plan, and a sentence about the profile that says so.

    Args:
        plan: the plan.
        cluster: what the nodes have; None: as this machine, if the plan is for it.

    Raises:
        BundleError: there is no profile, and none can be made.
    """
    kept = kept_profile(plan)
    config, profile = plan.config, kept.profile
    said = "by the profile in the run folder"
    if profile is None:
        wanted = ProfileRequest(
            sizes=(plan.batch.samples,), kind=device_kind(plan), threads=threads_of(plan)
        )
        profile = made_profile(config, wanted)
        said = "by a profile made just now" + (f"; {kept.why_not}" if kept.why_not else "")
    cuts = typed_cuts(plan, profile)
    if cuts is None:
        names = importlib.import_module(plan.module).cut_names(config)
        cuts = profile.cut_numbers(names, config.num_chunks)
    return PlanMemory.of(plan, profile, cuts, cluster), said


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    outputs = outputs_of(args)
    shows_schedule = hasattr(args, "schedule")
    # A bare --schedule only asks for the drawing: the TOML file or the environment names one.
    if shows_schedule and args.schedule is CONFIGURED:
        del args.schedule
    train, launch = read_configs(args, os.environ, default_data="DATA")
    if not train.value.run_dir:
        train = replace(train, value=replace(train.value, run_dir="RUN_DIR"))
    cluster = read_cluster(Path(launch.value.cluster)) if launch.value.cluster else None
    nodes = _nodes(args.nodes, cluster)
    decision: Mapping[str, Any] = {}
    profile, prospects = None, NONE_FORESEEN
    if is_asked(train):
        found = without_auto(train, launch, os.environ, launch.value.local_addr, nodes)
        train, decision, profile = found.train, found.document, found.profile
        prospects = found.prospects
    if nodes:
        plan = plan_elsewhere(nodes, train, launch)
    else:
        name = launch.value.node_name or socket.gethostname()
        plan = make_plan(train, launch, os.environ, as_typed(launch.value), name)
    if plan.train.value.shape.others:
        plan = plan.with_prospects(prospects if prospects.rows else shown_shapes(plan, cluster))
    costs = stage_costs(plan) if args.costs else []
    # What is foreseen of a plan that was chosen stands in the table of the best ones.
    forecast = foreseen(plan, cluster) if cluster is not None and not decision else None
    memory, said = memory_of(plan, cluster) if args.memory else (None, "")
    lost = _losses(plan)
    written: list[str] = []
    if outputs.is_asked:
        pictured = Pictured.of(
            plan,
            cluster=cluster,
            nodes=nodes,
            forecast=forecast,
            profile=profile,
            environ=os.environ,
        )
        written = write_outputs(outputs, pictured)
    if args.json:
        more: dict[str, object] = {"costs": costs, "losses": loss_document(lost)}
        if decision:
            more["decision"] = decision
        if forecast is not None:
            more["forecast"] = _forecast_document(forecast, train.value)
        if memory is not None:
            more["memory"] = {"source": said, **memory.document()}
        if outputs.is_asked:
            more["written"] = written
        print(plan_json(plan, **more))
    else:
        best = list(table(decision)) if decision else []
        told = _forecast_lines(forecast, train.value) if forecast is not None else []
        shown = [*memory.lines(), said] if memory is not None else []
        print(
            plan_text(plan, shows_schedule=shows_schedule),
            *_section("best plans", best),
            *_section("forecast", told),
            *_section("at the loss of a node", _loss_lines(lost, plan)),
            *_section("costs", costs),
            *_section("memory", shown),
            *_section("written", written),
            sep="\n",
        )
    return EXIT_DONE


def _losses(plan: LaunchPlan) -> list[Loss]:
    """What the loss of a node does; nothing where there is one node only."""
    train = plan.train.value
    if plan.topology.num_nodes < 2:
        return []
    return list(
        losses(
            plan.topology,
            train.shape,
            min_nodes=plan.launch.value.min_nodes,
            num_copies=train.num_copies,
            prospects=plan.prospects,
        )
    )


def _loss_lines(found: Sequence[Loss], plan: LaunchPlan) -> list[str]:
    return loss_lines(found, has_snapshots=plan.train.value.snapshot == "on")


def _nodes(text: str | None, cluster: Cluster | None) -> tuple[int, ...]:
    """Devices of each node that is not here; empty: the plan is for this machine."""
    own = cluster.devices_per_node if cluster is not None else ()
    if text is None:
        return own
    found = parse_nodes(text)
    if own and sorted(found) != sorted(own):
        raise ConfigError(
            f"--nodes {text} has {len(found)} nodes of {sum(found)} devices, --cluster describes "
            f"{len(own)} of {sum(own)}; leave --nodes out"
        )
    return own or found


def _forecast_lines(found: Foreseen | str, train: TrainConfig) -> list[str]:
    if isinstance(found, str):
        return [found]
    plan = found.candidate
    cut = f" cut at {', '.join(found.cut)}" if found.cut else ""
    return [
        f"shape {plan.shape}{cut}, {plan.schedule}, {plan.sync}, micro-batches of {plan.samples}",
        *forecast_lines(found.forecast, train.batch_size, num_steps=train.max_steps),
        *found.remarks,
    ]


def _forecast_document(found: Foreseen | str, train: TrainConfig) -> dict[str, object]:
    if isinstance(found, str):
        return {"why_not": found}
    plan = found.candidate
    return {
        "cut": list(found.cut),
        "schedule": plan.schedule,
        "sync": plan.sync,
        "microbatch_size": plan.samples,
        "remarks": list(found.remarks),
        **forecast_document(found.forecast, train.batch_size, num_steps=train.max_steps),
    }
