"""Which faults a chaos run injects, in which order: a pure function of the seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "kill worker",
    "kill agent",
    "kill node",
    "freeze worker",
    "freeze node",
    "cut link",
    "kill coordinator",
    "kill all",
    "kill two",
]
EVERYWHERE: dict[Kind, int] = {
    "kill worker": 6,
    "kill agent": 3,
    "kill node": 4,
    "freeze worker": 2,
    "freeze node": 2,
    "kill coordinator": 2,
    "kill all": 1,
}
"""Kinds and how often each is drawn, in relation to the others."""
LINKS: dict[Kind, int] = {"cut link": 3}
"""Where each node has a link that can be cut."""
WITH_LINKS: dict[Kind, int] = {**EVERYWHERE, **LINKS}
SHARE_OF_PAIRS = 0.2
MAX_APART_S = 1.0
"""Two at a time: the second strikes up to so long after the first, while that is dealt with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blow:
    """One thing that goes wrong.

    node, local_rank: whom it hits, where the kind leaves that open. after_steps: how many steps
    the run finishes after the last recovery before it. apart_s: it comes so long after the blow
    before it instead, seconds; -1: it does not. lasts_s: of a freeze or a cut, until it is healed.
    """

    kind: Kind
    node: int
    local_rank: int
    after_steps: int
    apart_s: float
    lasts_s: float

    @property
    def is_second(self) -> bool:
        """Whether it comes while the run has the one before to deal with."""
        return self.apart_s >= 0


def plan_blows(
    seed: int,
    count: int,
    slots: Sequence[int],
    *,
    has_links: bool,
    kinds: Mapping[Kind, int] = EVERYWHERE,
    pairs: float = SHARE_OF_PAIRS,
) -> list[Blow]:
    """The blows of a run.

    Args:
        seed: the same one gives the same plan, and a shorter plan is the beginning of a longer one.
        count: how many.
        slots: ranks of each node.
        has_links: whether links can be cut.
        kinds: other ones, and how often each is drawn in relation to the others.
        pairs: share of blows that come while another one is being dealt with.
    """
    # Everything is drawn for every blow, used or not: so a shorter plan begins a longer one.
    draw = random.Random(seed)
    weights = {**kinds, **LINKS} if has_links else kinds
    blows: list[Blow] = []
    for _ in range(count):
        kind = draw.choices(list(weights), list(weights.values()))[0]
        node = draw.randrange(len(slots))
        local_rank = draw.randrange(slots[node])
        after_steps = draw.randint(2, 12)
        is_pair = draw.random() < pairs
        apart_s = round(draw.uniform(0, MAX_APART_S), 3)
        lasts_s = round(draw.uniform(0.2, 6.0), 3)
        # Never three in a row: each pair ends with a recovery.
        is_second = is_pair and bool(blows) and not blows[-1].is_second
        blows.append(
            Blow(
                kind=kind,
                node=node,
                local_rank=local_rank,
                after_steps=after_steps,
                apart_s=apart_s if is_second else -1,
                lasts_s=lasts_s,
            )
        )
    return blows
