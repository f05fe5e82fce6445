"""The memory that the ranks of a launch need, by a profile of the model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import psutil

from bundlerun.launcher.agreement.planner_terms import candidate_of, wanted
from bundlerun.launcher.agreement.profile_key import profile_key
from bundlerun.launcher.choices import DeviceKind
from bundlerun.launcher.console import noun_for
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.microbatch import divisors
from bundlerun.launcher.plan import LaunchPlan
from bundlerun.launcher.planning import profile_file
from bundlerun.launcher.planning.candidate import Candidate, RankMemory
from bundlerun.launcher.planning.cluster import Cluster, Host, Link, NodeKind
from bundlerun.launcher.planning.memory.fits import Remedies, Shortfall, remedies, shortfalls
from bundlerun.launcher.planning.memory.ranks import rank_memory
from bundlerun.launcher.planning.memory.table import (
    memory_document,
    memory_lines,
    shortfall_line,
)
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.run_folder.files import SHARED_MEMORY
from bundlerun.launcher.run_folder.paths import RunPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanMemory:
    """What the ranks of a plan need, and whether it is there.

    Args:
        candidate: the plan, as far as memory depends on it.
        cluster: what it is for.
        ranks: of each stage, the one that needs the most.
        shorts: what is not enough.
        remedies: what would fit; None: all does.
    """

    candidate: Candidate
    cluster: Cluster
    ranks: tuple[RankMemory, ...]
    shorts: Sequence[Shortfall]
    remedies: Remedies | None

    @classmethod
    def of(
        cls,
        plan: LaunchPlan,
        profile: Profile,
        cuts: tuple[int, ...],
        cluster: Cluster | None = None,
    ) -> PlanMemory:
        """That of a launch.

        Args:
            plan: of it.
            profile: of its model.
            cuts: numbers of the boundaries at which the chunks after the first begin.
            cluster: what the nodes have; None: as this one, where the plan is for it.
        """
        where = cluster or cluster_of(plan)
        config = plan.config
        candidate = candidate_of(config, plan.topology, cuts, plan.batch.samples)
        request = wanted(config)
        ranks = rank_memory(profile, candidate, where, request)
        shorts = shortfalls(ranks, candidate, where)
        sizes = divisors(config.batch_size)
        would = remedies(profile, candidate, where, request, sizes) if shorts else None
        return cls(candidate=candidate, cluster=where, ranks=ranks, shorts=shorts, remedies=would)

    def lines(self) -> list[str]:
        """A table, and what does not fit."""
        return [
            *memory_lines(self.ranks, self.candidate, self.cluster),
            *(f"! {line}" for line in self.warnings()),
        ]

    def warnings(self) -> list[str]:
        """What does not fit, a line each, the worst first."""
        return [shortfall_line(short, self.remedies) for short in self.shorts]

    def document(self) -> dict[str, object]:
        """The same as plain values."""
        return memory_document(self.ranks, self.candidate, self.cluster, self.shorts, self.remedies)


def kept_profile(plan: LaunchPlan) -> profile_file.Read:
    """The profile in the run folder, if it holds for this plan."""
    config = plan.config
    key = profile_key(config, kind=device_kind(plan), threads=threads_of(plan))
    return profile_file.read(RunPaths(Path(config.run_dir)).model_profile, key)


def known_shortfalls(plan: LaunchPlan) -> list[str]:
    """What does not fit by the profile in the run folder, a line each.

    Nothing where it has none, or where only the model knows the cuts: nobody is to wait for that.
    """
    if not RunPaths(Path(plan.train.value.run_dir)).model_profile.exists():
        return []
    profile = kept_profile(plan).profile
    cuts = None if profile is None else typed_cuts(plan, profile)
    if profile is None or cuts is None:
        return []
    return PlanMemory.of(plan, profile, cuts).warnings()


def device_kind(plan: LaunchPlan) -> DeviceKind:
    """Of the plan's devices; of machines that are not there, what is asked for, else the CPU."""
    if plan.node is not None:
        return plan.node.devices.kind
    return "gpu" if plan.launch.value.devices == "gpu" else "cpu"


def threads_of(plan: LaunchPlan) -> int:
    """With which a rank computes."""
    return plan.node.layouts[0].threads if plan.node else plan.train.value.threads or 1


def typed_cuts(plan: LaunchPlan, profile: Profile) -> tuple[int, ...] | None:
    """The cuts, where names say them that the profile has; None: the model has to say them."""
    config = plan.config
    try:
        return profile.cut_numbers(config.cut, config.num_chunks)
    except ConfigError:
        return None


def cluster_of(plan: LaunchPlan) -> Cluster:
    """The nodes of a plan: all as this one where it is for this one, else of unknown memory."""
    kinds = []
    is_cpu = device_kind(plan) == "cpu"
    here = plan.node is not None
    host = psutil.virtual_memory().total if here else 0
    shm = _size_of_shared() if here else 0
    cores = (os.cpu_count() or 1) if is_cpu else 0
    for number, (devices, nodes) in enumerate(groupby(plan.topology.devices_per_node)):
        kinds.append(
            NodeKind(
                name=f"of {devices} {noun_for(devices, 'device')}" if number else "of this kind",
                count=len(list(nodes)),
                devices=devices,
                host_bytes=host,
                shm_bytes=shm,
                device_bytes=host // devices if is_cpu else 0,
                host=Host(cores=cores),
            )
        )
    return Cluster(kinds=tuple(kinds), between=Link(bytes_per_s=float("inf")))


def _size_of_shared() -> int:
    try:
        return psutil.disk_usage(str(SHARED_MEMORY)).total
    except OSError:
        return 0
