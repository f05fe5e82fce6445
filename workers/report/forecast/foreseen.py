"""What the steps of a run are foreseen to take, where its folder has a profile of the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch

from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.choices import SchemeName
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.timeline import max_in_flight
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.candidate import Candidate, Forecast, Request
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.planning.forecast import foresee
from bundlerun.launcher.planning.model_costs import Profile
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
    numbers = _numbers(found.profile, cuts, topology.num_chunks)
    if numbers is None:
        log.info("no forecast: the profile has not the places at which the model is cut")
        return None
    pipeline = Pipeline.of(topology, config.schedule)
    candidate = Candidate(
        shape=topology.shape,
        cuts=numbers,
        schedule=pipeline.schedule,
        sync=scheme,
        samples=config.samples_per_microbatch,
        chunks=topology.chunks_per_stage,
        recompute=frozenset(_recomputed(config, pipeline, topology)),
    )
    request = Request(
        batch_size=config.batch_size,
        exchange_dtype=config.exchange_dtype,
        bucket_bytes=round(1e6 * config.bucket_mb),
    )
    return foresee(found.profile, candidate, _cluster(session, paths), request)


def _recomputed(config: TrainConfig, pipeline: Pipeline, topology: Topology) -> Iterator[int]:
    """Stages that compute their activations again."""
    if config.recompute == "none":
        return
    number = divided_up(config.num_microbatches, topology.num_bundles)
    for stage in range(topology.num_stages):
        if config.recomputes(stage, max_in_flight(pipeline.order(stage, 0, number))):
            yield stage


def _numbers(profile: Profile, cuts: Sequence[str], num_chunks: int) -> tuple[int, ...] | None:
    """The boundaries at which the model is cut; None: they are not in the profile."""
    names = [boundary.name for boundary in profile.by_samples[0].boundaries]
    if not cuts:
        if num_chunks == 1:
            return ()
        # A list of modules, which has as many as there are chunks.
        return tuple(range(len(names))) if num_chunks == len(names) + 1 else None
    places = {name: number for number, name in enumerate(names)}
    found = [_place(places, cut) for cut in cuts]
    numbers = [number for number in found if number is not None]
    return tuple(numbers) if len(numbers) == len(cuts) else None


def _place(places: dict[str, int], cut: str) -> int | None:
    """A place is called after the outermost module that begins there: layer3 for layer3.0."""
    while cut not in places and "." in cut:
        cut = cut.rpartition(".")[0]
    return places.get(cut)


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
