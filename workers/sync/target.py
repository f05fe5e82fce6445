"""What of a bucket a rank exchanges: all of it, or its shard, wherever the sum of its node is."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from bundlerun.workers.sync.bucket import Bucket


class Target(Protocol):
    """What of a bucket this rank exchanges."""

    def flat(self, bucket: Bucket) -> Tensor:
        """Its numbers."""
        ...

    def begin(self, bucket: Bucket) -> int:
        """Where in the bucket they begin."""
        ...


class WholeWire:
    """All of a bucket; see `Target`."""

    def flat(self, bucket: Bucket) -> Tensor:
        """See `Target`."""
        return bucket.wire

    def begin(self, bucket: Bucket) -> int:
        """See `Target`."""
        del bucket
        return 0
