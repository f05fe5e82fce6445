"""What chaos hits: which nodes, what they train in which shapes, and with which faults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from benchmarks.faults.job import ROOT, RUN
from benchmarks.faults.plan import EVERYWHERE, SHARE_OF_PAIRS, Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Some nodes and the run on them.

    Args:
        name: in what is told, and for `--only`.
        slots: ranks of each node.
        kinds: of faults, and how often each is drawn in relation to the others.
        pairs: share of the faults that come while another one is being dealt with.
        options: of the run.
        work: what it trains.
    """

    name: str
    slots: tuple[int, ...]
    kinds: Mapping[Kind, int]
    pairs: float
    options: Mapping[str, object] = field(default_factory=dict)
    work: Mapping[str, object] = field(default_factory=lambda: RUN)


BUNDLES = Topology(name="bundles", slots=(2, 1, 1), kinds=EVERYWHERE, pairs=SHARE_OF_PAIRS)
"""Unlike nodes, one bundle whole on one and one that spans two; few ranks restart fast."""

SHAPES = Topology(
    name="shapes",
    slots=(1, 1, 1, 1),
    # A second fault before the copies of the new round are there may hit the only one that is left:
    # two nodes go at once, and they are not each other's buddies.
    kinds={**EVERYWHERE, "kill two": 4},
    pairs=0.0,
    options={"shape": "1,1,1,1|1,1,1|1,1|1", "snapshot-copies": 2},
    work={
        **RUN,
        "model": f"{ROOT / 'benchmarks' / 'workload' / 'small_cnn.py'}:build",
        "cut": "",
        "image-size": 16,
    },
)
"""One bundle, each stage once: its nodes go, and it goes on in another shape."""

TOPOLOGIES = (BUNDLES, SHAPES)
