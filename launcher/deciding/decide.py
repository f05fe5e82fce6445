"""Chooses shape, cuts, schedule and micro-batches together, before anything starts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.deciding.apart import profile_apart
from bundlerun.launcher.deciding.best_form import best_form, forms_for
from bundlerun.launcher.deciding.decision import Chosen, Question, keep_decision, kept_decision
from bundlerun.launcher.deciding.prospects import Outset, prospects_of, shapes_for_fewer
from bundlerun.launcher.deciding.question import (
    card_of,
    cluster_here,
    cluster_text,
    devices_of,
    question_of,
    request_of,
    sizes_to_profile,
)
from bundlerun.launcher.deciding.shown import chosen_line, plan_rows
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.exchange_form import ALL, EXACT, ExchangeForm
from bundlerun.launcher.layout.hardware import THREADS_VARIABLE, Devices, Hardware, rank_layouts
from bundlerun.launcher.layout.prospects import Cut, Prospects
from bundlerun.launcher.layout.shape import AUTO, Shape
from bundlerun.launcher.layout.topology import NONE_FORESEEN
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.planning.candidate import Candidate, Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.cluster_file import read_cluster
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.outlook import Outlook
from bundlerun.launcher.planning.profile_file import write
from bundlerun.launcher.planning.search.best import Search
from bundlerun.launcher.planning.search.judge import Planned
from bundlerun.launcher.run_folder.paths import RunPaths

MOST_SHOWN = 5
"""Plans that are shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A configuration that leaves nothing to the planner.

    Args:
        train: it.
        document: of the decision, as it is kept: what was asked, what is chosen, the best plans.
        profile: that was made for it; None: the decision had been kept.
        prospects: of the shapes that a run goes on in when nodes are lost; nothing: of none.
    """

    train: Resolved[TrainConfig]
    document: Mapping[str, Any]
    profile: Profile | None = None
    prospects: Prospects = NONE_FORESEEN


def decided(
    train: Resolved[TrainConfig],
    launch: LaunchConfig,
    *,
    hardware: Hardware,
    environ: Mapping[str, str],
    local_addr: str = "",
    nodes: Sequence[int] = (),
    tell: Callable[[str], object],
) -> Decided:
    """Chooses what is left to the planner, or takes what the run folder has of that.

    Args:
        train: with a shape or cuts that are to be chosen.
        launch: which nodes take part.
        hardware: of this node.
        environ: of its ranks.
        local_addr: at which the other nodes reach this one; empty: nobody says.
        nodes: devices of each node, for machines that are not there.
        tell: gets a line for each thing that takes seconds.

    Raises:
        BundleError: the data or the model does not do for it, or no plan fits.
    """
    devices = devices_of(train.value, launch, hardware)
    text = cluster_text(launch.cluster)
    question = question_of(train, launch, devices.kind, text)
    # Of machines that are not there nothing is kept: no run will begin on them here.
    paths = RunPaths(Path(train.value.run_dir)) if train.value.run_dir and not nodes else None
    document = kept_decision(paths.decision(question.digest)) if paths else {}
    profile = None
    if not document:
        if launch.cluster:
            cluster = read_cluster(Path(launch.cluster))
        else:
            card = card_of(local_addr)
            cluster = cluster_here(hardware, devices, launch.max_nodes, card, nodes)
        profile = _profile(train.value, devices, hardware, environ, tell)
        document = choose(train, profile, cluster, question)
        document |= fewer_nodes(train, profile, cluster, document, launch.min_nodes)
        if paths:
            # What the run compares its own times with, and what later plans go by.
            write(paths.model_profile, profile)
            document = keep_decision(paths.decision(question.digest), document)
    for line in (chosen_line(document), *document["notes"]):
        tell(line)
    chosen = Chosen.from_plain(document["chosen"]).applied(train)
    prospects = Prospects.parse(document.get("prospects", ""))
    if prospects.rows:
        chosen = in_family(chosen, Shape.parse(document["family"]))
    return Decided(train=chosen, document=document, profile=profile, prospects=prospects)


def fewer_nodes(
    train: Resolved[TrainConfig],
    profile: Profile,
    cluster: Cluster,
    document: Mapping[str, Any],
    min_nodes: int,
) -> dict[str, Any]:
    """What a decision has of runs that nodes are lost of, where it is to choose the shape.

    Nothing where the shape is typed, or the same for any number of nodes, or stages compute again,
    which are numbered in one shape.
    """
    one = Chosen.from_plain(document["chosen"])
    is_open = train.value.shape.is_auto and one.recompute == "none" and one.cutter != "auto"
    if not is_open or set(train.value.cut) - {AUTO} or cluster.num_nodes <= max(1, min_nodes):
        return {}
    config = one.applied(train).value
    outset = Outset(
        train=config,
        profile=profile,
        cluster=cluster,
        samples=one.microbatch_size,
        min_nodes=min_nodes,
    )
    family = shapes_for_fewer(outset)
    # Else nodes would not run ranks on all the devices that are foreseen.
    is_full = all(family.usable_devices(kind.devices) == kind.devices for kind in cluster.kinds)
    if not family.others or not is_full:
        return {}
    outset = replace(outset, train=in_family(one.applied(train), family).value)
    rate = config.batch_size / document["plans"][0]["step_s"]
    every = tuple(sorted(cluster.devices_per_node, reverse=True))
    # On all nodes as it was chosen, after looking at more cuts.
    rows = [
        replace(row, cut=Cut(one.cut, one.cutter), samples_per_s=rate)
        if row.devices == every and row.shape.widths == one.shape.widths
        else row
        for row in prospects_of(outset).rows
    ]
    return {"family": str(family), "prospects": Prospects(tuple(rows)).to_text()}


def in_family(train: Resolved[TrainConfig], family: Shape) -> Resolved[TrainConfig]:
    """The same with shapes that will do; each is cut as its prospect says."""
    return replace(train, value=replace(train.value, shape=family, cut=()))


def choose(
    train: Resolved[TrainConfig], profile: Profile, cluster: Cluster, question: Question
) -> dict[str, Any]:
    """The decision, as it is kept.

    Raises:
        ConfigError: no plan fits.
    """
    names = profile.boundary_names
    found = _searched(train, profile, cluster)
    plans = _plans(found)
    form, why = EXACT, ""
    if train.value.exchange == AUTO:
        outlook = Outlook(profile=profile, cluster=cluster, request=request_of(train, profile))
        form, why = best_form(
            outlook,
            [plan.candidate for plan in plans],
            forms_for(question.devices, train.value.precision),
            may_lose=train.value.exchange_loss == "ok",
        )
        if not form.is_exact:  # with shorter sums another plan may be the best
            found = _searched(train, profile, cluster, form)
            plans = _plans(found)
    lumps = {str(one.lump) for one in found if one.lump and plans[0].candidate.cuts}
    return {
        "question": question.to_plain(),
        "chosen": _chosen(train.value, profile, plans[0].candidate, names, form).to_plain(),
        "bound_s": min(one.bound_s for one in found),
        "batch_size": train.value.batch_size,
        "notes": sorted(lumps) + ([why] if why else []),
        "plans": plan_rows(plans[:MOST_SHOWN], names),
    }


def _searched(
    train: Resolved[TrainConfig], profile: Profile, cluster: Cluster, form: ExchangeForm = EXACT
) -> list[Search]:
    """The best plans; with a form that is chosen, for that."""
    requests = _requests(train, profile)
    if not form.is_exact:
        requests = (replace(request, exchange=form) for request in requests)
    return [
        Outlook(profile=profile, cluster=cluster, request=request).best(MOST_SHOWN)
        for request in requests
    ]


def _plans(found: Sequence[Search]) -> list[Planned]:
    """All of them, the best ones first."""
    return sorted((p for one in found for p in one.plans), key=lambda p: p.forecast.step_s)


def _requests(train: Resolved[TrainConfig], profile: Profile) -> Iterator[Request]:
    """What is wanted; a model that its author has cut runs in these stages, or in one."""
    request = request_of(train, profile)
    if profile.cutter is not None:
        yield request
        return
    whole, shape = tuple(range(len(profile.boundary_names))), request.shape
    if shape is None or shape.num_stages > 1:
        yield replace(request, cuts=whole)
    if shape is None or shape.num_stages == 1:
        yield replace(request, shape=Shape((1,)), cuts=())


def _chosen(
    train: TrainConfig,
    profile: Profile,
    one: Candidate,
    names: Sequence[str],
    form: ExchangeForm,
) -> Chosen:
    is_split = one.shape.num_stages > 1
    recompute = ",".join(map(str, sorted(one.recompute))) if is_split else ""
    # A model that its author has cut has no names to cut at.
    is_cut = is_split and profile.cutter is not None
    return Chosen(
        shape=one.shape,
        cut=tuple(names[number] for number in one.cuts) if is_cut else (),
        cutter=(profile.cutter if is_cut else None) or train.cutter,
        schedule=one.schedule if is_split else "auto",
        # Measured on the real links at the start, which is better than what is foreseen.
        sync=train.sync,
        microbatch_size=one.samples,
        recompute=recompute or "none",
        exchange=ALL if train.exchange == AUTO else train.exchange,
        exchange_dtype=form.dtype if train.exchange == AUTO else train.exchange_dtype,
    )


def _profile(
    train: TrainConfig,
    devices: Devices,
    hardware: Hardware,
    environ: Mapping[str, str],
    tell: Callable[[str], object],
) -> Profile:
    sizes = sizes_to_profile(train, devices.kind)
    words = " and ".join(map(str, sizes))
    tell(f"measuring {train.model} with micro-batches of {words} samples, to choose a plan")
    # As a rank computes that has its share of the node.
    threads = rank_layouts(
        devices.count, hardware.cpus, threads=train.threads, affinity=False, environ=environ
    )[0].threads
    with tempfile.TemporaryDirectory() as folder:
        apart = replace(train, run_dir=folder)
        environment = {**environ, THREADS_VARIABLE: str(threads)}
        out = Path(folder) / "profile.json"
        return profile_apart(apart, sizes, devices.kind, out, environment)
