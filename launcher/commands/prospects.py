"""What is foreseen of several shapes, for a plan that a run goes by or that is only shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from bundlerun.launcher.deciding.prospects import Outset, kept_prospects, prospects_of
from bundlerun.launcher.deciding.question import card_of, cluster_here, cluster_text, question_of
from bundlerun.launcher.layout.hardware import read_hardware
from bundlerun.launcher.layout.prospects import Prospects
from bundlerun.launcher.plan import LaunchPlan
from bundlerun.launcher.planned.memory import device_kind, kept_profile
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.run_folder.paths import RunPaths


def foreseen_shapes(
    plan: LaunchPlan, environ: Mapping[str, str], tell: Callable[[str], object]
) -> Prospects:
    """That of a run; nothing where its folder has no profile, or nobody knows the links.

    Kept in the run folder: all nodes, and later starts, have the same.

    Args:
        plan: of this node; its shape names several.
        environ: of its ranks.
        tell: gets a line where it takes seconds.

    Raises:
        ConfigError: --cluster describes none.
        OSError: the run folder cannot be written.
    """
    launch = plan.launch.value
    cluster = _cluster(plan, environ)
    outset = _outset(plan, cluster, tell) if cluster is not None else None
    if outset is None:
        return Prospects()
    text = cluster_text(launch.cluster)
    question = question_of(plan.train, launch, device_kind(plan), text)
    folder = RunPaths(Path(plan.train.value.run_dir)).prospects
    return kept_prospects(folder, question, outset, tell)


def shown_shapes(plan: LaunchPlan, cluster: Cluster | None) -> Prospects:
    """The same for a plan that is only shown, on the nodes of a cluster; nothing is kept."""
    outset = _outset(plan, cluster) if cluster is not None else None
    return prospects_of(outset) if outset is not None else Prospects()


def _outset(
    plan: LaunchPlan, cluster: Cluster, tell: Callable[[str], object] = lambda _: None
) -> Outset | None:
    kept = kept_profile(plan)
    profile = kept.profile
    # A file may describe other nodes than those that run ranks here.
    devices, described = plan.topology.devices_per_node, cluster.devices_per_node
    if profile is None and kept.why_not:
        tell(f"the shape that uses the most devices is taken, without a forecast: {kept.why_not}")
    if profile is None or sorted(described) != sorted(devices):
        return None
    return Outset(
        train=plan.train.value,
        profile=profile,
        cluster=cluster,
        samples=plan.batch.samples,
        min_nodes=plan.launch.value.min_nodes,
    )


def _cluster(plan: LaunchPlan, environ: Mapping[str, str]) -> Cluster | None:
    """As a file describes it; else as this node, where its card says how fast it is."""
    launch, node = plan.launch.value, plan.here
    if launch.cluster:
        return read_cluster(Path(launch.cluster))
    card = card_of(node.meeting.local_addr)
    if card is None:
        return None
    return cluster_here(read_hardware(environ), node.devices, launch.max_nodes, card, ())
