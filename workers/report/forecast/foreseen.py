"""What the steps of a run are foreseen to take, where its folder has a profile of the model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import torch

from bundlerun.launcher.agreement.planner_terms import candidate_of, wanted
from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.candidate import Forecast
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.planning.outlook import Outlook
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.device.accelerator import is_gpu
from bundlerun.workers.rank.arrival.session import Session

log = logging.getLogger(__name__)


def foreseen(
    config: TrainConfig, session: Session, cuts: Sequence[str], scheme: SchemeName
) -> Forecast | None:
    """A step of the run; None where no profile was kept, or it is of something else.

    Args:
        config: of the run, its micro-batches settled.
        session: this rank.
        cuts: names at which the model was cut.
        scheme: how gradients are summed.
    """
    paths = RunPaths(Path(config.run_dir))
    if not paths.model_profile.exists():
        return None
    key = profile_key(
        config,
        kind="gpu" if is_gpu(session.device) else "cpu",
        threads=torch.get_num_threads(),
    )
    found = profile_file.read(paths.model_profile, key)
    if found.profile is None:
        if found.why_not:
            log.info("no forecast: %s", found.why_not)
        return None
    topology = session.topology
    try:
        numbers = found.profile.cut_numbers(cuts, topology.num_chunks)
    except ConfigError as exc:
        log.info("no forecast: %s", exc)
        return None
    samples = config.samples_per_microbatch
    candidate = replace(candidate_of(config, topology, numbers, samples), sync=scheme)
    cluster, request = _cluster(session, paths), wanted(config)
    return Outlook(profile=found.profile, cluster=cluster, request=request).forecast(candidate)


def _cluster(session: Session, paths: RunPaths) -> Cluster:
    """As measured, where a file says so of these nodes; else links without limit."""
    topology = session.topology
    if paths.cluster.exists():
        try:
            found = read_cluster(paths.cluster)
        except ConfigError as exc:
            log.info("%s: the forecast goes without it", exc)
        else:
            if found.devices_per_node == topology.devices_per_node:
                return found
            log.info("%s is of other nodes: the forecast goes without it", paths.cluster)
    host = Host() if is_gpu(session.device) else Host.usual(session.arrival.cores.num_cores)
    return cluster_like(topology, host)


def cluster_like(topology: Topology, host: Host) -> Cluster:
    """Nodes of a topology that have nothing else in which they differ."""
    runs = [(devices, len(list(same))) for devices, same in groupby(topology.devices_per_node)]
    kinds = tuple(
        NodeKind(name=f"kind{number}", count=count, devices=devices, host=host)
        for number, (devices, count) in enumerate(runs)
    )
    return Cluster(kinds=kinds, between=Link(bytes_per_s=float("inf")))
