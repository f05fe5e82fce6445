"""A plan as plain values, and as the text that `--json` prints."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from operator import itemgetter

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.idle import idle_share, num_workless
from bundlerun.launcher.layout.topology import Place, SyncGroup, Topology
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.plan import LaunchPlan, NodePlan


def plan_document(plan: LaunchPlan) -> dict[str, object]:
    """The plan as plain values."""
    topology = plan.topology
    groups = [_group(group) for group in topology.sync_groups]
    return {
        **_size(topology),
        "ranks": [_place(place) for place in topology.places],
        "collect": groups,
        "distribute": groups,
        **_exchange(topology),
        "links": [{**link._asdict(), "kind": link.kind.value} for link in topology.links],
        **_rest(plan),
    }


def plan_json(plan: LaunchPlan, **more: object) -> str:
    """The document as `json.dumps(..., indent=2)` writes it, with more members behind.

    The rows that are as many as ranks are filled into templates: for 100,000 ranks the library
    takes several seconds, as it indents in Python, value by value.
    """
    topology = plan.topology
    with _without_collection():
        groups = [_group_text(group) for group in topology.sync_groups]
        parts = [
            _members(_size(topology)),
            _rows("ranks", map(_place_text, topology.places)),
            _rows("collect", groups),
            _rows("distribute", groups),
            _members(_exchange(topology)),
            _rows("links", _link_texts(topology)),
            _members({**_rest(plan), **more}),
        ]
        return "{\n" + ",\n".join(parts) + "\n}"


@contextmanager
def _without_collection() -> Iterator[None]:
    """No search for cycles meanwhile: there are none in what is made, and much to search."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _size(topology: Topology) -> dict[str, object]:
    return {
        "shape": list(topology.shape.widths),
        "devices_per_node": list(topology.devices_per_node),
        "num_bundles": topology.num_bundles,
    }


def _exchange(topology: Topology) -> dict[str, object]:
    groups = enumerate(topology.exchange_groups)
    return {"exchange": [{"stage": stage, "ranks": list(ranks)} for stage, ranks in groups]}


def _rest(plan: LaunchPlan) -> dict[str, object]:
    return {
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


def _group(group: SyncGroup) -> dict[str, object]:
    return {"stage": group.stage, "node": group.node, "ranks": list(group.ranks)}


def _values(resolved: Resolved[TrainConfig] | Resolved[LaunchConfig]) -> dict[str, object]:
    value = resolved.value
    plain = value.to_plain() if isinstance(value, TrainConfig) else {}
    values = {name: plain.get(name, getattr(value, name)) for name in resolved.sources}
    return {
        name: {"value": values[name], "source": source} for name, source in resolved.sources.items()
    }


# --- text


def _members(values: Mapping[str, object]) -> str:
    """Members of an object, without its braces."""
    return json.dumps(values, indent=2)[2:-2]


def _rows(name: str, rows: Iterable[str]) -> str:
    """A member that is a list of rows."""
    lines = ",\n".join(rows)
    return f'  "{name}": [\n{lines}\n  ]' if lines else f'  "{name}": []'


def _template(values: Mapping[str, object]) -> str:
    """A row of a list, with a place for the value of what is None."""
    lines = [
        f'      "{name}": ' + ("%s" if value is None else json.dumps(value))
        for name, value in values.items()
    ]
    return "    {\n" + ",\n".join(lines) + "\n    }"


_NUMBERS = dict.fromkeys(Place._fields[:-1])
_PLACES = {
    (is_master, is_spare): _template(
        {**_NUMBERS, Place._fields[-1]: is_master, "is_spare": is_spare}
    )
    for is_master in (False, True)
    for is_spare in (False, True)
}


def _place_text(place: Place) -> str:
    return _PLACES[place.is_local_master, place.bundle < 0] % place[:-1]


_GROUP = _template({"stage": None, "node": None, "ranks": None})
_BREAK = ",\n        "


def _group_text(group: SyncGroup) -> str:
    ranks = _BREAK.join(map(str, group.ranks))
    return _GROUP % (group.stage, group.node, f"[\n        {ranks}\n      ]")


def _link_texts(topology: Topology) -> Iterator[str]:
    """Per bundle, its links: those of all bundles have the same ends, counted in the bundle."""
    if not topology.link_pattern:
        return
    rows: list[str] = []
    ends: list[int] = []
    for kind, src, dst, chunk in topology.link_pattern:
        row = {"bundle": None, "kind": kind.value, "src": None, "dst": None, "chunk": chunk}
        rows.append(_template(row))
        # Behind the bundle's number come its ranks.
        ends += [0, 1 + src, 1 + dst]
    template, values = ",\n".join(rows), itemgetter(*ends)
    for bundle, ranks in enumerate(topology.bundles):
        yield template % values((bundle, *ranks))
