"""Buckets: which parameters travel together, and what rides along."""

from __future__ import annotations

import torch
from torch.nn import Parameter

from bundlerun.workers.sync.bucket import Bucket, bucket_bytes, clear, cut_into_buckets


def parameters(*sizes: int, dtype: torch.dtype = torch.float32) -> list[Parameter]:
    return [Parameter(torch.zeros(size, dtype=dtype)) for size in sizes]


def sizes_of(buckets: list[list[Parameter]]) -> list[list[int]]:
    return [[p.numel() for p in bucket] for bucket in buckets]


def test_buckets_go_from_the_last_parameter_to_the_first() -> None:
    buckets = cut_into_buckets([parameters(30_000, 20_000, 40_000, 50_000, 10)], 200_000)
    assert sizes_of(buckets) == [[10], [50_000], [40_000], [20_000, 30_000]]


def test_a_bucket_holds_one_dtype() -> None:
    part = [*parameters(20_000), *parameters(7, 8, dtype=torch.float64), *parameters(20_000, 9)]
    assert sizes_of(cut_into_buckets([part], 1 << 30)) == [[9], [20_000], [8, 7], [20_000]]


def test_the_last_chunk_of_the_model_goes_first() -> None:
    parts = [parameters(20_000, 1), parameters(30_000, 2)]
    assert sizes_of(cut_into_buckets(parts, 1 << 30)) == [[2], [30_000], [1, 20_000]]


def test_the_first_bucket_takes_a_short_parameter_from_further_on_or_none() -> None:
    assert sizes_of(cut_into_buckets([parameters(5, 30_000)], 1))[0] == [5]
    assert sizes_of(cut_into_buckets([parameters(30_000, 30_000)], 1)) == [[], [30_000], [30_000]]
    assert sizes_of(cut_into_buckets([[]], 1)) == [[]]


def test_the_first_bucket_widens_its_gradients_and_brings_them_back() -> None:
    (parameter,) = parameters(3)
    bucket = Bucket([parameter], 2, torch.device("cpu"), None)
    clear([bucket])
    bucket.extra[0] = 1 / 3
    (parameter * 7).sum().backward()
    bucket.close({parameter})
    assert bucket.wire.tolist() == [1 / 3, 0, 7, 7, 7, 0]
    bucket.wire.mul_(2)  # as if another rank had the same
    assert bucket.open().tolist() == [0]
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [14, 14, 14]


def test_gradients_lie_in_the_bucket_from_the_start() -> None:
    part = parameters(2, 3)
    bucket = Bucket(part, 0, torch.device("cpu"), None)
    for _ in range(2):
        clear([bucket])
        (part[0].sum() * 2 + part[1].sum()).backward()
        bucket.close({part[0]})
        assert bucket.wire.tolist() == [2, 2, 1, 1, 1, 0, 1]


def test_the_size_of_a_bucket_goes_by_the_nodes_unless_it_is_said() -> None:
    assert [bucket_bytes(0, nodes) for nodes in (1, 2, 4, 100)] == [
        10**6,
        10**6,
        2 * 10**6,
        8 * 10**6,
    ]
    assert bucket_bytes(25, 2) == 25 * 10**6
    assert [bucket_bytes(mb, 2, "nccl") for mb in (0, 4)] == [25 * 10**6, 4 * 10**6]


def test_a_bucket_of_equal_parts_has_zeros_at_its_end() -> None:
    part = parameters(2, 3)
    bucket = Bucket(part, 0, torch.device("cpu"), None, num_parts=4)
    assert (bucket.wire.numel(), [view.numel() for view in bucket.views]) == (8, [2, 3])
    bucket.wire.fill_(1)
    assert bucket.open().numel() == len(part)
