"""A plan as plain values, as `--json` prints it."""

from __future__ import annotations

from dataclasses import asdict

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.idle import idle_share, num_workless
from bundlerun.launcher.layout.topology import Place
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.plan import LaunchPlan, NodePlan


def plan_document(plan: LaunchPlan) -> dict[str, object]:
    """The plan as plain values."""
    topology = plan.topology
    return {
        "shape": list(topology.shape.widths),
        "devices_per_node": list(topology.devices_per_node),
        "num_bundles": topology.num_bundles,
        "ranks": [_place(place) for place in topology.places],
        "collect": [asdict(group) for group in topology.sync_groups],
        "distribute": [asdict(group) for group in topology.sync_groups],
        "exchange": [
            {"stage": stage, "ranks": list(ranks)}
            for stage, ranks in enumerate(topology.exchange_groups)
        ],
        "links": [{**link._asdict(), "kind": link.kind.value} for link in topology.links],
        "schedule": _schedule(plan),
        "idle": _idle(plan),
        "node": _node(plan.node) if plan.node else None,
        "module": plan.module,
        "argv": plan.argv,
        "commands": plan.commands(),
        "torchrun": plan.torchrun_commands(),
        "config": _values(plan.train),
        "launch": _values(plan.launch),
    }


def _node(node: NodePlan) -> dict[str, object]:
    first, *others = node.meeting.endpoints
    meeting = {
        "address": first.host,
        "port": first.port,
        "is_here": node.meeting.is_here,
        "local_addr": node.meeting.local_addr,
        "others": list(map(str, others)),
    }
    return {**asdict(node), "meeting": meeting}


def _schedule(plan: LaunchPlan) -> dict[str, object]:
    pipeline, timeline = plan.pipeline, plan.timeline
    return {
        "name": pipeline.schedule,
        "chunks": pipeline.chunks_per_stage,
        "microbatches_per_bundle": plan.bundle_microbatches,
        "bubble": timeline.bubble,
        "ranks": [
            {
                "stage": stage,
                "replica": replica,
                "in_flight": timeline.in_flight[stage, replica],
                "order": [str(span.action) for span in spans],
            }
            for (stage, replica), spans in timeline.spans.items()
        ],
    }


def _idle(plan: LaunchPlan) -> dict[str, object]:
    batch, num_bundles = plan.batch, plan.topology.num_bundles
    return {
        "devices": plan.num_idle + len(plan.topology.spare_ranks),
        "bundles_without_work": num_workless(batch, num_bundles),
        "share_of_time": idle_share(plan.pipeline, batch, num_bundles),
        "samples_per_microbatch": batch.samples,
        "warnings": plan.warnings(),
    }


def _place(place: Place) -> dict[str, object]:
    return {**place._asdict(), "is_spare": place.is_spare}


def _values(resolved: Resolved[TrainConfig] | Resolved[LaunchConfig]) -> dict[str, object]:
    value = resolved.value
    plain = value.to_plain() if isinstance(value, TrainConfig) else {}
    values = {name: plain.get(name, getattr(value, name)) for name in resolved.sources}
    return {
        name: {"value": values[name], "source": source} for name, source in resolved.sources.items()
    }
