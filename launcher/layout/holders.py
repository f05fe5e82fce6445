"""The ranks that hold the same state: the replicas of one stage, or of all stages that share some.

    shape 1,1 on nodes of 4 and 2 devices; stages 0 and 1 share a parameter     (* leads its node)

      node 0                 node 1
      r0  r1  r2  r3         r4  r5
      s0  s1  s0  s1         s0  s1
      0*      2              4*          holders of stage 0
      0*  1   2   3          4*  5       holders of stages 0 and 1

Pure arithmetic, as `bundlerun.launcher.layout.topology`: whoever is to be in a group with others
finds the same ranks in the same order as they do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from bundlerun.launcher.layout.topology import Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Holders:
    """All ranks that hold what some stages hold.

    Args:
        stages: ascending.
        ranks: in order of bundle, then stage, then replica.
        by_node: of each node that has some, ascending; the first of them is the node's master.
    """

    stages: tuple[int, ...]
    ranks: tuple[int, ...]
    by_node: dict[int, tuple[int, ...]]

    @classmethod
    def of(cls, topology: Topology, stages: Collection[int]) -> Holders:
        """Those of the given stages."""
        wanted = set(stages)
        indices = [i for i, (stage, _) in enumerate(topology.positions) if stage in wanted]
        ranks = tuple(bundle[i] for bundle in topology.bundles for i in indices)
        by_node: dict[int, list[int]] = {}
        for rank in sorted(ranks):
            by_node.setdefault(topology.places[rank].node, []).append(rank)
        return cls(
            stages=tuple(sorted(wanted)),
            ranks=ranks,
            by_node={node: tuple(of_node) for node, of_node in by_node.items()},
        )

    @property
    def name(self) -> str:
        """A name that no other holders of the round have."""
        return f"stage{'+'.join(map(str, self.stages))}"

    @property
    def num_shards(self) -> int:
        """Ranks that every node has of them: that many can share what crosses between nodes."""
        return min(map(len, self.by_node.values()))

    def leaders(self, shard: int) -> tuple[int, ...]:
        """Per node, the rank that exchanges one shard; shard 0: the nodes' masters."""
        return tuple(of_node[shard] for of_node in self.by_node.values())
