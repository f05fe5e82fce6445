"""How large a bucket of gradients is."""

from __future__ import annotations

_MB_PER_NODE = 0.5
"""A ring of N nodes cuts a bucket into N messages; shorter ones are not worth their overhead."""
_LEAST_MB, _MOST_MB = 1.0, 8.0
"""Measured: a sync of 16 MiB between two nodes takes 361 ms in buckets of 1 MB, 373 in 4 MB."""
_NCCL_MB = 25.0
"""As DDP has them: what a bucket costs beside its bytes is much, next to a link between GPUs."""
MOST_WIDENED = 16 << 10
"""Elements of the first bucket: it is short, because it doubles float32, and leaves early."""


def bucket_bytes(bucket_mb: float, num_nodes: int, backend: str = "gloo") -> int:
    """`bucket_mb` in bytes; where it is 0, the size that suits that many nodes and a backend."""
    by_nodes = min(max(_MB_PER_NODE * num_nodes, _LEAST_MB), _MOST_MB)
    return int(1e6 * (bucket_mb or (_NCCL_MB if backend == "nccl" else by_nodes)))
