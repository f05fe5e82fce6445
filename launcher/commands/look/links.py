"""`bundlerun profile --links`: what is between nodes, and inside one, as a cluster file."""

from __future__ import annotations

import argparse
import math
import shutil
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import psutil

from bundlerun.launcher.commands.run import read_configs
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.doctor.findings import Level
from bundlerun.launcher.doctor.local import Wanted
from bundlerun.launcher.doctor.peers.lead import Together
from bundlerun.launcher.doctor.peers.links import rate_text
from bundlerun.launcher.doctor.peers.places import parse_peers, places_of
from bundlerun.launcher.doctor.peers.together import Group, examine_together
from bundlerun.launcher.doctor.peers.wire import Secret
from bundlerun.launcher.doctor.read.node_links import read_node_links
from bundlerun.launcher.errors import EXIT_DONE, EXIT_NODE, ConfigError, NodeError
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import choose_devices, read_hardware
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.planning.cluster import Link
from bundlerun.launcher.planning.measured_cluster import MeasuredNode, cluster_text
from bundlerun.launcher.rendezvous.settings import TOKEN_VARIABLE
from bundlerun.launcher.run_folder.files import SHARED_MEMORY, write_text
from bundlerun.launcher.run_folder.latest import RUNS


def links(args: argparse.Namespace, environ: Mapping[str, str]) -> int:
    """Measures, and writes or prints the file on the first node.

    Raises:
        ConfigError: an option is wrong.
        NodeError: this node gives no memory for it, its port is taken, or the file cannot be
            written.
    """
    if not 0 < args.wait_s < math.inf:
        raise ConfigError(f"--wait-s {args.wait_s} must be above 0")
    train, launch = read_configs(args, environ, default_data="synthetic")
    peers, own = args.peers, launch.value.local_addr
    places = places_of(parse_peers(peers), own) if peers else None
    node = own_node(train, launch, environ)
    if places is None:
        return _told([node], {}, args.output)
    group = Group(
        places=places,
        # Without a secret this keeps other measurements out, not other people.
        secret=Secret((environ.get(TOKEN_VARIABLE) or "bundlerun").encode()),
        wait_s=args.wait_s,
        shared=None,
        name=node.name,
        facts=asdict(node),
        command="bundlerun profile --links",
    )
    wanted = Wanted(run_dir=Path(RUNS), devices=launch.value.devices, is_quick=True)
    outcome = examine_together(group, wanted, environ, _say)
    if outcome.together is None:
        _say("the cluster file is on the first node" if outcome.verdict else "see the first node")
        return EXIT_DONE if outcome.verdict else EXIT_NODE
    together = outcome.together
    for finding in together.between:
        # What does not fit a run is for the doctor to say in full.
        if finding.level is Level.ERROR:
            _say(f"{finding.subject}: {finding.text}; {finding.mend}")
    return _told(*measured(together), args.output)


def own_node(
    train: Resolved[TrainConfig], launch: Resolved[LaunchConfig], environ: Mapping[str, str]
) -> MeasuredNode:
    """What this node has, and what is inside of it.

    Raises:
        NodeError: it gives no memory or no process for the measurement.
    """
    try:
        found = read_node_links()
        shm = shutil.disk_usage(SHARED_MEMORY).total
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise NodeError(f"cannot measure shared memory of this node: {reason}") from exc
    hardware = read_hardware(environ)
    kind, slots = launch.value.devices, launch.value.slots
    devices = choose_devices(hardware, train.value.shape, kind=kind, slots=slots)
    host, cores, on_cpu = (
        psutil.virtual_memory().total,
        hardware.cpus.num_cores,
        devices.kind == "cpu",
    )
    return MeasuredNode(
        name=launch.value.node_name or socket.gethostname(),
        devices=devices.count,
        device_bytes=host // devices.count if on_cpu else 0,
        host_bytes=host,
        shm_bytes=shm,
        loaders=max(0, cores - devices.count),
        cores=cores if on_cpu else 0,
        inside=Link(bytes_per_s=found.bytes_per_s, latency_s=found.latency_s),
        copy_s_per_byte=found.copy_s_per_byte,
        send_s_per_byte=found.send_s_per_byte,
    )


def measured(
    together: Together,
) -> tuple[list[MeasuredNode], dict[tuple[int, int], Link]]:
    """The nodes that came, and the links between them that could be measured."""
    nodes: list[MeasuredNode] = []
    places: dict[int, int] = {}
    for report in together.nodes:
        facts: dict[str, Any] = dict(report.facts)
        try:
            node = MeasuredNode(**{**facts, "inside": Link(**facts["inside"])})
        except (KeyError, TypeError):  # of another version
            _say(f"{report.name} tells nothing of itself; give all nodes the same bundlerun")
            continue
        places[report.index] = len(nodes)
        nodes.append(replace(node, name=report.name))
    found = {}
    for link in together.links:
        ends = places.get(link.source), places.get(link.target)
        if link.bytes_per_s and link.rtt_s is not None and None not in ends:
            pair = (places[link.source], places[link.target])
            found[pair] = Link(bytes_per_s=link.bytes_per_s, latency_s=link.rtt_s / 2)
    return nodes, found


def _told(nodes: Sequence[MeasuredNode], links: Mapping[tuple[int, int], Link], output: str) -> int:
    if not nodes:
        return EXIT_NODE
    text = cluster_text(nodes, links)
    if not output:
        print(text, end="")
        return EXIT_DONE
    try:
        write_text(Path(output), text)
    except OSError as exc:
        raise NodeError(
            f"cannot write {output!r}: {exc.strerror}; give another file with -o"
        ) from exc
    inside = min(node.inside.bytes_per_s for node in nodes)
    said = f"{output}: {len(nodes)} nodes, {rate_text(inside)} inside"
    if links:
        rates = [link.bytes_per_s for link in links.values()]
        said += f", {rate_text(min(rates))} to {rate_text(max(rates))} between"
    print(said)
    return EXIT_DONE


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
