"""Foresees each of several shapes on the nodes that may be left, before a run begins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice, product
from pathlib import Path

from bundlerun.launcher.agreement.planner_terms import wanted
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.deciding.decision import Question
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.prospects import Cut, Prospect, Prospects
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology, num_bundles
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.outlook import Outlook
from bundlerun.launcher.run_folder.files import create_text

_MOST_LOST = 8
"""Nodes at one time that are foreseen to be away."""
_MOST_CASES = 40
"""Sets of nodes that are looked at."""
_EFFORT = 20
"""Plans that are foreseen for each: cuts that are moved a little make little difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outset:
    """What prospects are made of.

    Args:
        train: of the run; its shape names several.
        profile: of its model.
        cluster: all nodes.
        samples: of a micro-batch.
        min_nodes: with fewer the run waits.
    """

    train: TrainConfig
    profile: Profile
    cluster: Cluster
    samples: int
    min_nodes: int


def prospects_of(outset: Outset) -> Prospects:
    """What is foreseen; nothing where nodes of different kinds have as many devices.

    Which of them are left could not be told then by what a round knows of its nodes.
    """
    counts = [kind.devices for kind in outset.cluster.kinds]
    if len(set(counts)) < len(counts) or outset.profile.cutter is None:
        return Prospects()
    return Prospects(tuple(row for nodes in _left(outset) for row in _rows(outset, nodes)))


def _left(outset: Outset) -> Iterator[Cluster]:
    """All nodes, then those that are left when some are away, the fewest first."""
    kinds, total = outset.cluster.kinds, outset.cluster.num_nodes
    counts = product(*(range(kind.count, -1, -1) for kind in kinds))
    fit = [each for each in counts if sum(each) >= max(1, outset.min_nodes, total - _MOST_LOST)]
    for each in sorted(fit, key=sum, reverse=True)[:_MOST_CASES]:
        here = [
            replace(kind, count=count) for kind, count in zip(kinds, each, strict=True) if count
        ]
        yield replace(outset.cluster, kinds=tuple(here))


def _rows(outset: Outset, nodes: Cluster) -> Iterator[Prospect]:
    devices = tuple(sorted(nodes.devices_per_node, reverse=True))
    for shape in outset.train.shape.family:
        if not num_bundles(shape.size, devices):
            continue
        outlook = Outlook(
            profile=outset.profile, cluster=nodes, request=_request(outset, shape, nodes)
        )
        try:
            best = outlook.best(effort=_EFFORT).plans[0]
        except ConfigError:  # none fits
            yield Prospect(devices=devices, shape=shape, samples_per_s=0.0)
            continue
        names = outset.profile.boundary_names
        yield Prospect(
            devices=devices,
            shape=shape,
            samples_per_s=outset.train.batch_size / best.forecast.step_s,
            cut=Cut(
                tuple(names[number] for number in best.candidate.cuts),
                outset.profile.cutter or "auto",
            ),
        )


def _request(outset: Outset, shape: Shape, nodes: Cluster) -> Request:
    """The plan that a round would have, but for the cuts."""
    train = outset.train.in_shape(shape)
    topology = Topology(shape, nodes.devices_per_node, train.chunks)
    pipeline = Pipeline.of(topology, train.schedule)
    recomputes = train.recompute == "all"
    return replace(
        wanted(train),
        shape=shape,
        cuts=() if shape.num_stages == 1 else None,
        schedule=pipeline.schedule,
        sync=None if train.sync == "auto" else train.sync,
        samples=outset.samples,
        recompute=frozenset(range(shape.num_stages) if recomputes else ()),
    )


def shapes_for_fewer(outset: Outset) -> Shape:
    """The shape of a run, and those that are the best where nodes are lost: a family.

    Args:
        outset: its options have the shape for all nodes.
    """
    found = [outset.train.shape.widths]
    for nodes in islice(_left(outset), 1, None):
        request = replace(
            wanted(outset.train), samples=outset.samples, recompute=frozenset(), chunks=1
        )
        outlook = Outlook(profile=outset.profile, cluster=nodes, request=request)
        with suppress(ConfigError):  # nothing fits: they wait
            found.append(outlook.best(effort=_EFFORT).plans[0].candidate.shape.widths)
    first, *others = dict.fromkeys(found)
    return Shape(first, others=tuple(others))


def kept_prospects(
    folder: Path, question: Question, outset: Outset, tell: Callable[[str], object]
) -> Prospects:
    """What the run folder has; else what is foreseen now, and kept: all nodes have the same.

    Args:
        folder: where they are kept.
        question: what the plan depends on.
        outset: what else it does.
        tell: gets a line where that takes seconds.

    Raises:
        OSError: the run folder cannot be written.
    """
    key = json.dumps(
        [question.to_plain(), asdict(outset.profile.key), outset.samples, outset.min_nodes],
        sort_keys=True,
    )
    path = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    kept = _read(path)
    if kept is not None:
        return kept
    tell(f"foreseeing shapes {outset.train.shape} on the nodes that may be left")
    made = prospects_of(outset)
    folder.mkdir(parents=True, exist_ok=True)
    if create_text(path, made.to_text(), may_be_met_empty=False):
        return made
    # Another node was first, and its numbers hold for all.
    return _read(path) or Prospects()


def _read(path: Path) -> Prospects | None:
    try:
        return Prospects.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, ConfigError):
        return None
