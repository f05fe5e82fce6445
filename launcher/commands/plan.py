"""`bundlerun plan`: what would run where, for this machine or for others."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bundlerun.launcher.commands.arguments.plan import CONFIGURED
from bundlerun.launcher.commands.run import make_plan, read_configs, without_auto
from bundlerun.launcher.deciding.shown import table
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.meeting.network import as_typed
from bundlerun.launcher.picture import plan_text
from bundlerun.launcher.plan import LaunchPlan, plan_elsewhere
from bundlerun.launcher.plan_document import plan_document


def parse_nodes(text: str) -> tuple[int, ...]:
    """Reads `4x8,2x4` as devices per node: (8, 8, 8, 8, 4, 4).

    Raises:
        ConfigError: it is written otherwise.
    """
    nodes: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(?:(\d+)x)?(\d+)\s*", part)
        if not match or int(match[1] or 1) < 1 or int(match[2]) < 1:
            raise ConfigError(f"--nodes {text!r} is not NODESxDEVICES[,...], such as 4x8,2x4")
        nodes += [int(match[2])] * int(match[1] or 1)
    return tuple(nodes)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"  {line}" for line in lines)] if lines else []


def stage_costs(plan: LaunchPlan) -> list[str]:
    """Lines about the work of each stage, from the program that the ranks run."""
    if plan.train.value.shape.num_stages == 1:
        return ["one stage has all of the operations"]
    lines: list[str] = importlib.import_module(plan.module).costs(plan.train.value)
    return lines


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    shows_schedule = hasattr(args, "schedule")
    # A bare --schedule only asks for the drawing: the TOML file or the environment names one.
    if shows_schedule and args.schedule is CONFIGURED:
        del args.schedule
    train, launch = read_configs(args, os.environ, default_data="DATA")
    if not train.value.run_dir:
        train = replace(train, value=replace(train.value, run_dir="RUN_DIR"))
    nodes = parse_nodes(args.nodes) if args.nodes is not None else ()
    decision: Mapping[str, Any] = {}
    if train.value.is_for_planner:
        found = without_auto(train, launch, os.environ, launch.value.local_addr, nodes)
        train, decision = found.train, found.document
    if nodes:
        plan = plan_elsewhere(nodes, train, launch)
    else:
        name = launch.value.node_name or socket.gethostname()
        plan = make_plan(train, launch, os.environ, as_typed(launch.value), name)
    costs = stage_costs(plan) if args.costs else []
    if args.json:
        document = {**plan_document(plan), "costs": costs}
        print(json.dumps({**document, "decision": decision} if decision else document, indent=2))
    else:
        best = list(table(decision)) if decision else []
        text = plan_text(plan, shows_schedule=shows_schedule)
        print(text, *_section("best plans", best), *_section("costs", costs), sep="\n")
    return EXIT_DONE
