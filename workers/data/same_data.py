"""Checks that all nodes, and all starts of a run, read the same data; once the data is open.

[1] ranks of stage 0 that read a stream its first samples                 data/of-RANK
    first rank of stage 0 of a node     sizes, names of the samples       data/NODE
[2] the reporter                        compares, with the run folder too data
[3] all                                 continue, or end with the difference
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress

from bundlerun.launcher.agreement.agreed import Terms, changes, difference
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.data.readers import is_stream
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.recipe import DataInfo, DataSets

_SAMPLES, _CLASSES = "the number of training samples", "the number of classes"
_LIST = "the list of training samples"
_KEPT = (_SAMPLES, _CLASSES, _LIST)
"""What a resumed run must not change: the order of samples depends on it (I1)."""


def check_same_data(
    info: DataInfo,
    data: DataSets | None,
    session: Session,
    feed: Feed,
    paths: RunPaths,
    *,
    is_new: bool,
) -> None:
    """Raises ConfigError, on all ranks, where nodes have other data, or this start has.

    Collective: every active rank.

    Args:
        info: sizes of the data.
        data: the samples, on stage 0.
        feed: of the samples.
        paths: of the run, which keep what its first start has seen.
        is_new: whether the run begins.
    """
    topology, place, store = session.topology, session.place, session.store
    nodes = sorted({p.node for p in topology.places if p.stage == 0 and not p.is_spare})
    # [1] One rank per node: ranks of a node see the same disks.
    if data is not None:
        first, *others = topology.collect_ranks(0, place.node)
        # But a stream may look at the rank, and give each another part.
        others = others if is_stream(data.train) else []
        if place.rank in others:
            store.set(f"data/of-{place.rank}", json.dumps(terms_of_data(info, feed.digests())))
        elif place.rank == first:
            own = terms_of_data(info, feed.digests())
            theirs = {f"rank {r}": json.loads(store.get(f"data/of-{r}")) for r in others}
            unlike = difference({f"rank {first}": own, **theirs})
            store.set(f"data/{place.node}", json.dumps([session.arrival.node_name, own, unlike]))
    if session.is_reporter:
        # [2] Waits for all nodes that read; the others have nothing to compare.
        by_node, inside = {}, ""
        for node in nodes:
            name, terms, unlike = json.loads(store.get(f"data/{node}"))
            inside = inside or unlike
            # Several agents of one machine have one name.
            by_node[f"{name} (node {node})" if name in by_node else name] = terms
        if inside:
            inside = f"a stream must be the same on all ranks: {inside}"
        unlike = inside or difference(by_node) or _unlike_before(paths, terms, is_new=is_new)
        store.set("data", json.dumps(unlike))
    # [3] All hear the same text, and end alike.
    unlike = json.loads(store.get("data"))
    if unlike:
        raise ConfigError(unlike)


def _unlike_before(paths: RunPaths, terms: Terms, *, is_new: bool) -> str:
    """How the samples differ from those of the run's first start; empty if they do not."""
    kept = {name: terms[name] for name in _KEPT if name in terms}
    try:
        before = {} if is_new else json.loads(paths.data_terms.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if not before:
        # A full disk ends no run here: the checkpoints say it soon enough.
        with suppress(OSError):
            write_text(paths.data_terms, json.dumps(kept, indent=2) + "\n")
        return ""
    found = "; ".join(changes(before, kept).values())
    way = "continue with the DATA of before, or start again in another --run-dir"
    return f"this run has other DATA: {found}; {way}" if found else ""


def terms_of_data(info: DataInfo, digests: Mapping[str, str]) -> dict[str, str]:
    """What is compared, as `bundlerun.launcher.agreement.agreed` has it.

    Args:
        info: sizes of the data.
        digests: of the samples of each part.
    """
    # A digest: names of classes may be thousands, and this is shown where it differs.
    about = hashlib.sha256(json.dumps(info.about, sort_keys=True).encode()).hexdigest()[:12]
    terms = {
        _SAMPLES: str(info.num_train),
        "the number of validation samples": str(info.num_val),
        _CLASSES: str(info.num_outputs),
        "what is known of DATA": about,
    }
    for part, digest in digests.items():
        terms[f"the list of {part} samples"] = digest
    return terms
