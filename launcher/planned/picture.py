"""A plan as text: a picture of nodes, bundles and stages, tables, settings with their sources.

node 0, 4 devices
  bundle 0   r0* s0   r1* s1          * local master
  bundle 1   r2  s0   r3  s1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import noun_for
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.timeline import drawn
from bundlerun.launcher.layout.topology import Link, LinkKind, Place, Topology
from bundlerun.launcher.options.declared import Resolved, groups_of, text_of
from bundlerun.launcher.plan import LaunchPlan, NodePlan

MAX_ROWS = 16
"""Rows of a table before it is cut short; `--json` has them all."""
MAX_WIDTH = 160
"""Columns of a time line before it is cut short."""


def plan_text(plan: LaunchPlan, *, max_rows: int = MAX_ROWS, shows_schedule: bool = False) -> str:
    """The plan as a person reads it.

    Args:
        plan: the plan.
        max_rows: rows of a table before it is cut short.
        shows_schedule: whether the order of passes is drawn.
    """
    topology = plan.topology
    parts = [
        _summary(topology),
        _batch_line(plan),
        *(f"! {line}" for line in plan.warnings()),
        *_section("nodes", picture(topology, max_rows)),
        *_section("ranks", rank_table(topology, max_rows)),
        *_section("groups", group_lines(topology, max_rows)),
        *_section("links", link_lines(topology, max_rows)),
    ]
    if shows_schedule:
        parts += _section("schedule", schedule_lines(plan, max_rows))
    if plan.node:
        parts += _section("this node", node_lines(plan.node, plan.launch.value))
    parts += _section("command", plan.commands())
    parts += _section("the same without bundlerun", plan.torchrun_commands())
    parts += _section("launch options", setting_lines(plan.launch))
    parts += _section("training options", setting_lines(plan.train))
    return "\n".join(parts)


def _summary(topology: Topology) -> str:
    spare = len(topology.spare_ranks)
    return (
        f"{_count(topology.num_bundles, 'bundle')} of shape {topology.shape} "
        f"({_count(topology.num_stages, 'stage')}) on {_count(topology.num_nodes, 'node')}, "
        f"{_count(topology.world_size, 'rank')}" + (f", {spare} of them spare" if spare else "")
    )


def _batch_line(plan: LaunchPlan) -> str:
    batch, is_said = plan.batch, plan.train.value.microbatch_size
    source = "" if is_said else ", as the run began" if plan.kept_samples else ", by default"
    per_bundle = _count(plan.bundle_microbatches, "micro-batch")
    return (
        f"a step of {_count(batch.size, 'sample')}: micro-batches of {batch.samples}{source}; "
        f"{per_bundle} for a bundle at most"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun_for(number, noun)}"


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    yield ""
    yield title
    for line in lines:
        yield f"  {line}".rstrip()


def _shortened(rows: Sequence[str], limit: int) -> Iterator[str]:
    yield from islice(rows, limit)
    if len(rows) > limit:
        yield f"... {len(rows) - limit:,} more"


def picture(topology: Topology, max_rows: int = MAX_ROWS) -> Iterator[str]:
    """Yields the nodes with their bundles; nodes that look alike are drawn once."""
    drawn = 0
    for first, last in _runs_of_nodes(topology):
        if drawn >= max_rows:
            yield f"... and {topology.num_nodes - first:,} more nodes"
            return
        name = (
            f"node {first}" if first == last else f"nodes {first} to {last}, each as node {first}"
        )
        yield f"{name}: {_count(topology.devices_per_node[first], 'rank')}"
        rows = list(_bundle_rows(topology, first))
        yield from (f"  {row}" for row in _shortened(rows, max_rows))
        drawn += min(len(rows), max_rows)
    yield "(r rank, s stage, .n its replica in the bundle, * local master)"


def _runs_of_nodes(topology: Topology) -> Iterator[tuple[int, int]]:
    """Yields first and last of neighbouring nodes that hold equal numbers of whole bundles."""
    counts = topology.devices_per_node
    size = len(topology.positions)
    first = 0
    for node in range(1, len(counts) + 1):
        # A node smaller than a bundle has a row of its own: its bundles span its neighbours.
        if node == len(counts) or counts[node] != counts[first] or counts[first] < size:
            yield first, node - 1
            first = node


def _node_places(topology: Topology, node: int) -> tuple[Place, ...]:
    first = topology.first_ranks[node]
    return topology.places[first : first + topology.devices_per_node[node]]


def _bundle_rows(topology: Topology, node: int) -> Iterator[str]:
    rows: dict[int, list[Place]] = {}
    for place in _node_places(topology, node):
        rows.setdefault(place.bundle, []).append(place)
    for bundle, places in rows.items():
        title = f"bundle {bundle}" if bundle >= 0 else "spare"
        whole = bundle < 0 or len(places) == len(topology.positions)
        shown = "   ".join(_box(place, topology) for place in places[:12])
        more = f"   ... {len(places) - 12} more" if len(places) > 12 else ""
        yield f"{title:<10} {shown}{more}{'' if whole else '   (part)'}"


def _box(place: Place, topology: Topology) -> str:
    if place.is_spare:
        return f"r{place.rank}"
    replica = f".{place.replica}" if topology.shape.widths[place.stage] > 1 else ""
    return f"r{place.rank}{'*' if place.is_local_master else ' '} s{place.stage}{replica}"


def rank_table(topology: Topology, max_rows: int = MAX_ROWS) -> Iterator[str]:
    """Yields what each rank is."""
    yield "rank  node  local rank  bundle  stage  replica  local master"
    # Only the rows that are shown: a plan may have thousands of ranks.
    rows = [_rank_row(place) for place in topology.places[: max_rows + 1]]
    yield from rows[:max_rows]
    if topology.world_size > max_rows:
        yield f"... {topology.world_size - max_rows:,} more"


def _rank_row(place: Place) -> str:
    start = f"{place.rank:>4}  {place.node:>4}  {place.local_rank:>10}"
    if place.is_spare:
        return f"{start}  spare"
    mark = "yes" if place.is_local_master else ""
    return f"{start}  {place.bundle:>6}  {place.stage:>5}  {place.replica:>7}  {mark}"


def group_lines(topology: Topology, max_rows: int = MAX_ROWS) -> Iterator[str]:
    """Yields the groups of a sync."""
    yield f"collect and distribute: {_count(len(topology.sync_groups), 'group')}"
    rows = [
        f"  stage {group.stage}, node {group.node}: {_ranks(group.ranks)}"
        for group in topology.sync_groups[: max_rows + 1]
    ]
    yield from rows[:max_rows]
    if len(topology.sync_groups) > max_rows:
        yield f"  ... {len(topology.sync_groups) - max_rows:,} more"
    yield "exchange: one group per stage"
    for stage, ranks in enumerate(topology.exchange_groups):
        yield f"  stage {stage}: {_ranks(ranks)}"


def _ranks(ranks: Sequence[int], limit: int = 12) -> str:
    shown = " ".join(f"r{rank}" for rank in ranks[:limit])
    return shown + (f" ... {len(ranks) - limit:,} more" if len(ranks) > limit else "")


def link_lines(topology: Topology, max_rows: int = MAX_ROWS) -> Iterator[str]:
    """Yields the links of one bundle, all others have the same."""
    rows = [
        f"{link.kind.value:<10} r{link.src} -> r{link.dst}" + _chunk_text(link, topology)
        for link in topology.bundle_links(0)
    ]
    if not rows:
        yield "none: a bundle is one rank" if topology.num_stages == 1 else "none"
        return
    yield f"{_count(len(rows), 'link')} per bundle; those of bundle 0:"
    yield from (f"  {row}" for row in _shortened(rows, max_rows))


def _chunk_text(link: Link, topology: Topology) -> str:
    is_target = link.kind is LinkKind.TARGET
    return "" if topology.chunks_per_stage == 1 or is_target else f", chunk {link.chunk}"


def schedule_lines(plan: LaunchPlan, max_rows: int = MAX_ROWS) -> Iterator[str]:
    """Yields a step of one bundle in time, its bubble and its memory."""
    pipeline, timeline = plan.pipeline, plan.timeline
    per_stage = pipeline.chunks_per_stage
    chunks = f", {per_stage} chunks per stage" if per_stage > 1 else ""
    per_bundle = _count(plan.bundle_microbatches, "micro-batch")
    yield f"{pipeline.schedule}{chunks}, {per_bundle} per bundle, rows are stage.replica"
    yield (
        "F forward, takes 1; B backward, takes 2"
        + (", or 1 with the weights' part W after it" if pipeline.schedule == "zero-bubble" else "")
        + ("; F0.1 is that of the rank's chunk 1" if per_stage > 1 else "")
    )
    yield ""
    rows = [r if len(r) <= MAX_WIDTH else r[: MAX_WIDTH - 4] + " ..." for r in drawn(timeline)]
    yield from _shortened(rows, max_rows)
    yield ""
    yield f"bubble {timeline.bubble:.1%} of the work, transfers left out"
    what = "micro-batches" + (" times chunks" if pipeline.chunks_per_stage > 1 else "")
    held = [
        max(timeline.in_flight[stage, replica] for replica in range(width))
        for stage, width in enumerate(pipeline.shape.widths)
    ]
    yield f"most {what} in flight on a rank, by stage: {', '.join(map(str, held))}"


def node_lines(node: NodePlan, launch: LaunchConfig) -> Iterator[str]:
    """Yields what this node starts, where, and with which environment."""
    kind = "CPU slot" if node.devices.kind == "cpu" else "GPU"
    idle = node.devices.count - node.num_procs
    yield f"name {node.name}, {_count(node.devices.count, kind)}" + (
        f", {idle} of them idle" if idle > 0 else ""
    )
    first = node.meeting.first
    where = first if first.port else f"{first.host}, a free port"
    yield f"rendezvous at {where} ({launch.rdzv_backend}), own address {_or_route(node)}"
    yield f"logs in {node.log_dir}"
    for local_rank, layout in enumerate(node.layouts):
        pinned = f"CPUs {_cpu_list(layout.cpus)}" if layout.cpus else "not pinned"
        threads = f"{_count(layout.threads, 'thread')} ({layout.threads_from})"
        yield f"local rank {local_rank}: {threads}, {pinned}"
    yield _loading(node.loaders)
    for name, value in node.environment.items():
        yield f"{name}={value}"


def _loading(count: int) -> str:
    if count:
        return f"{_count(count, 'loading process')} of each rank that reads data"
    return "no loading processes: ranks read between their steps (--loader-workers)"


def _or_route(node: NodePlan) -> str:
    return node.meeting.local_addr or "by the route there"


def _cpu_list(cpus: Sequence[int]) -> str:
    """Writes (0, 1, 2, 5) as `0-2,5`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def setting_lines(resolved: Resolved[TrainConfig] | Resolved[LaunchConfig]) -> Iterator[str]:
    """Yields each value with where it came from."""
    sources = resolved.sources
    if isinstance(resolved.value, TrainConfig):
        yield f"{'DATA':<20} {resolved.value.data:<24} {sources['data']}"
    for group, names in groups_of(type(resolved.value)).items():
        yield f"{group}:"
        for name in names:
            value = getattr(resolved.value, name)
            yield f"  {name.replace('_', '-'):<18} {text_of(value) or '-':<24} {sources[name]}"
