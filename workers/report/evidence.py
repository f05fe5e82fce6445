"""What a metric of a validation has to know that is no sum, brought together from all replicas.

replica 0   {"detections": (3, 5)}
replica 1   {"detections": (2, 5)}     ->     {"detections": (5, 5)} on both, in this order
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.models.user_file import users_code
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.step import StepShare

AllSum = Callable[[Tensor], Tensor]
"""Sums float64 numbers over the replicas of the stage; collective."""
Rows = Mapping[str, Tensor]


def joined(parts: Sequence[Rows]) -> dict[str, Tensor]:
    """The rows of several micro-batches, in CPU memory.

    Raises:
        ConfigError: they are not alike, or no tables of numbers.
    """
    for part in parts:
        for name, value in part.items():
            if not isinstance(value, Tensor) or value.dim() != 2:
                raise ConfigError(f"evidence() gives no tensor (rows, columns) as {name!r}")
    looks = [{name: value.shape[1] for name, value in part.items()} for part in parts]
    for look in looks:
        if look != looks[0]:
            raise ConfigError(
                f"evidence() gives {_shown(look)} for one micro-batch and {_shown(looks[0])} for "
                "another; let it give the same names and columns for all"
            )
    names = looks[0] if looks else ()
    return {n: torch.cat([part[n].detach().double().cpu() for part in parts]) for n in names}


def together(own: Rows, replica: int, num_replicas: int, all_sum: AllSum) -> dict[str, Tensor]:
    """The rows of all replicas, in their order, on each of them.

    Collective: all replicas of the stage.

    Args:
        own: what `joined` gave; nothing for one without a micro-batch.
        replica: number of this one.
        num_replicas: of the stage.
        all_sum: see there.
    """
    look = json.dumps([[name, list(value.shape)] for name, value in own.items()]).encode()
    # One float64 per letter: exact. A sum with zeros is a broadcast.
    letters = torch.tensor(list(look), dtype=torch.float64)
    flat = torch.cat([letters, *(value.reshape(-1) for value in own.values())])
    sizes = torch.zeros(num_replicas, 2, dtype=torch.float64)
    sizes[replica] = torch.tensor([len(letters), len(flat)])
    known = all_sum(sizes.view(-1)).view(-1, 2).long().tolist()
    everything = torch.zeros(sum(length for _, length in known), dtype=torch.float64)
    begin = sum(length for _, length in known[:replica])
    everything[begin : begin + len(flat)] = flat
    parts = all_sum(everything).cpu().split([length for _, length in known])
    unpacked = [_unpacked(part, size) for part, (size, _) in zip(parts, known, strict=True)]
    return joined([part for part in unpacked if part])


def judged(recipe: Recipe, share: StepShare, session: Session, all_sum: AllSum) -> dict[str, float]:
    """What the recipe makes of the evidence of a validation; nothing where it asks for none.

    Collective: all replicas of the stage.

    Args:
        recipe: may have `evidence` and `judged`.
        share: has what `evidence` gave for each micro-batch of this replica.
        session: has its place.
        all_sum: see there.

    Raises:
        ConfigError: no floats by name come of it.
    """
    judge = getattr(recipe, "judged", None)
    if judge is None or not hasattr(recipe, "evidence"):
        return {}
    replicas = session.topology.stage_ranks(session.place.stage)
    replica = replicas.index(session.place.rank)
    rows = together(joined(share.evidence), replica, len(replicas), all_sum)
    with users_code("judged() of the recipe"):
        return {str(name): float(value) for name, value in judge(rows).items()}


def _unpacked(part: Tensor, num_letters: int) -> dict[str, Tensor]:
    looks = json.loads(bytes(map(int, part[:num_letters].tolist())))
    values = part[num_letters:].split([rows * columns for _, (rows, columns) in looks])
    return {n: value.view(shape) for (n, shape), value in zip(looks, values, strict=True)}


def _shown(look: Mapping[str, int]) -> str:
    return ", ".join(f"{name!r} with {count} columns" for name, count in look.items()) or "nothing"
