"""Whether all nodes read the same data; known once it is open, where no glance could tell.

first rank of stage 0 of a node     sizes, names of the samples       data/NODE
the reporter                        compares                          data
all                                 go on, or end with the difference
"""

from __future__ import annotations

import hashlib
import json

from launcher.agreement import difference
from launcher.errors import ConfigError
from workers.recipe import DataInfo, DataSets
from workers.session import Session


def check_same_data(info: DataInfo, data: DataSets | None, session: Session) -> None:
    """Raises ConfigError, on all ranks, where nodes have other data.

    Collective: every active rank.

    Args:
        info: sizes of the data.
        data: the samples, on stage 0.
    """
    topology, place, store = session.topology, session.place, session.store
    if topology.num_nodes == 1:
        return
    nodes = [group.node for group in topology.sync_groups if group.stage == 0]
    if data is not None and topology.collect_ranks(0, place.node)[0] == place.rank:
        said = [session.arrival.node_name, terms_of_data(info, data)]
        store.set(f"data/{place.node}", json.dumps(said))
    if session.is_reporter:
        by_node = {}
        for node in nodes:
            name, terms = json.loads(store.get(f"data/{node}"))
            by_node[f"{name} (node {node})" if name in by_node else name] = terms
        store.set("data", json.dumps(difference(by_node)))
    unlike = json.loads(store.get("data"))
    if unlike:
        raise ConfigError(unlike)


def terms_of_data(info: DataInfo, data: DataSets) -> dict[str, str]:
    """What is compared, as `launcher.agreement` has it."""
    about = hashlib.sha256(json.dumps(info.about, sort_keys=True).encode()).hexdigest()[:12]
    terms = {
        "the number of training samples": str(info.num_train),
        "the number of validation samples": str(info.num_val),
        "the number of classes": str(info.num_outputs),
        "what is known of DATA": about,
    }
    for part, samples in (("training", data.train), ("validation", data.val)):
        names = getattr(samples, "names_digest", None)
        if callable(names):
            terms[f"the list of {part} samples"] = str(names())
    return terms
