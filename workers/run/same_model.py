"""Whether all ranks have made the same model, cut at the same places: before a step is tried.

every rank    a short digest of names, shapes and types
the first     reads all of them; "" where they are equal, else the first rank of another model
these two     say what theirs has, the first names the first difference, and all end with it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from torch import nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.rank.arrival.session import Session

_ANSWER = "model"


def check_same_model(session: Session, found: Mapping[str, str]) -> None:
    """Raises ConfigError, on all ranks alike, where one has made another model than the first.

    Collective: every rank that is not spare.

    Args:
        session: of this rank.
        found: the whole model, as this rank has made it; see `described`.
    """
    ranks = [place.rank for place in session.topology.places if not place.is_spare]
    own, store = session.place.rank, session.store
    if len(ranks) == 1:
        return
    store.set(_key("digest", own), hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16])
    first = ranks[0]
    if own == first:
        digests = store.multi_get([_key("digest", rank) for rank in ranks])
        others = [rank for rank, its in zip(ranks, digests, strict=True) if its != digests[0]]
        store.set(_ANSWER, json.dumps(others[:1]))
    unlike = json.loads(store.get(_ANSWER))
    if not unlike:
        return
    if own in (first, *unlike):
        words = f"rank {own} on {session.arrival.node_name}"
        store.set(_key("whole", own), json.dumps([words, found]))
    whole = [json.loads(store.get(_key("whole", rank))) for rank in (first, *unlike)]
    raise ConfigError(difference_of(*whole[0], *whole[1]))


def described(stages: Sequence[nn.Module]) -> dict[str, str]:
    """Parameters and buffers by stage and name: what they are, not their values."""
    found = {}
    for number, stage in enumerate(stages):
        for name, tensor in (*stage.named_parameters(), *stage.named_buffers()):
            dtype = str(tensor.dtype).removeprefix("torch.")
            found[f"{name} of stage {number}"] = f"{tuple(tensor.shape)} {dtype}"
    return found


def difference_of(
    who: str, one: Mapping[str, str], other_who: str, other: Mapping[str, str]
) -> str:
    """Says what the models of two ranks do not have alike, first of all."""
    names = [*one, *(name for name in other if name not in one)]
    unlike = [name for name in names if one.get(name) != other.get(name)]
    if not unlike:  # the same ones in another order
        pairs = zip(one, other, strict=True)
        here, there = next((a, b) for a, b in pairs if a != b)
        what = f"after the same beginning comes {here} on {who} and {there} on {other_who}"
    else:
        name = unlike[0]
        what = (
            f"{name} is {one.get(name, 'not there')} on {who} and "
            f"{other.get(name, 'not there')} on {other_who}"
        )
    more = f"; and {len(unlike) - 1} more differ" if len(unlike) > 1 else ""
    return (
        f"ranks have made different models: {what}{more}; make it from the same options and files "
        "on all ranks"
    )


def _key(what: str, rank: int) -> str:
    return f"{_ANSWER}/{what}/{rank}"
