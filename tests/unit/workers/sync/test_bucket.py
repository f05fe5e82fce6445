"""Buckets: which parameters travel together, and what rides along."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from bundlerun.launcher.layout.bucket_size import bucket_bytes
from bundlerun.workers.sync.bucket import Bucket, cut_into_buckets

CPU = torch.device("cpu")


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


def used(bucket: Bucket, *parts: Parameter) -> None:
    """As the sync does after a backward: each parameter has its first gradient."""
    for _ in parts:
        bucket.note_first()


def test_the_first_bucket_widens_its_gradients_and_brings_them_back() -> None:
    (parameter,) = parameters(3)
    bucket = Bucket([parameter], 2, CPU, None, num_unused=1)
    for _ in range(2):
        parameter.grad = None
        bucket.begin()
        bucket.extra[0] = 1 / 3
        for _ in range(2):
            (parameter * 7).sum().backward()
            used(bucket, parameter)
        bucket.close()
        assert bucket.wire.tolist() == [1 / 3, 0, 14, 14, 14, 0]
        bucket.wire.mul_(2)  # as if another rank had the same
        bucket.open()
        assert parameter.grad is not None
        assert (parameter.grad.dtype, parameter.grad.tolist()) == (torch.float32, [28, 28, 28])


def test_a_wider_bucket_brings_a_gradient_to_who_has_none_of_its_own() -> None:
    part = parameters(3, 2)
    bucket = Bucket(part, 1, CPU, None)
    bucket.begin()
    part[1].sum().backward()
    used(bucket, part[1])
    bucket.close()
    assert bucket.wire.tolist() == [0, 0, 0, 0, 1, 1]
    bucket.wire.fill_(5)  # as if other ranks had more
    bucket.open()
    assert [None if p.grad is None else p.grad.tolist() for p in part] == [[5] * 3, [5] * 2]


def test_gradients_are_copied_in_at_once_when_all_are_there_and_added_to_there() -> None:
    part = parameters(2, 3)
    bucket = Bucket(part, 0, CPU, None, num_unused=2)
    for _ in range(2):
        for parameter in part:
            parameter.grad = None
        bucket.begin()
        (part[0].sum() * 2).backward()
        used(bucket, part[0])
        assert part[0].grad is not bucket.views[0]
        part[1].sum().backward()
        used(bucket, part[1])
        assert bucket.wire.tolist() == [2, 2, 1, 1, 1, 0, 0]
        (part[0].sum() * 3).backward()
        assert bucket.wire.tolist() == [5, 5, 1, 1, 1, 0, 0]
        assert [p.grad is view for p, view in zip(part, bucket.views, strict=True)] == [True] * 2
        bucket.close()
        assert bucket.wire.tolist() == [5, 5, 1, 1, 1, 0, 0]


def test_a_gradient_that_a_hook_replaces_travels_whenever_it_does() -> None:
    part = parameters(2, 1)

    def clamped(parameter: Parameter) -> None:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.clamp(max=2.5)

    part[0].register_post_accumulate_grad_hook(clamped)
    bucket = Bucket(part, 0, CPU, None)
    for count in (1, 2):
        for parameter in part:
            parameter.grad = None
        bucket.begin()
        for number in range(count):
            (part[0].sum() * 2 + part[1].sum()).backward()
            used(bucket, *part if not number else ())
        bucket.close()
        assert bucket.wire.tolist() == [min(2.0 * count, 2.5)] * 2 + [count]
        assert all(p.grad is view for p, view in zip(part, bucket.views, strict=True))


def test_what_has_no_gradient_travels_as_zeros_whatever_was_there_before() -> None:
    part = parameters(2, 3)
    bucket = Bucket(part, 0, CPU, None)
    bucket.wire.fill_(9)
    bucket.begin()
    part[0].sum().backward()
    used(bucket, part[0])
    bucket.close()
    assert bucket.wire.tolist() == [1, 1, 0, 0, 0]
    assert part[1].grad is bucket.views[1]


@pytest.mark.parametrize("num_extra", [0, 1])
def test_a_sparse_gradient_is_dense_in_a_bucket(num_extra: int) -> None:
    weight = Parameter(torch.ones(3, 2))
    bucket = Bucket([weight], num_extra, CPU, None)
    bucket.begin()
    torch.nn.functional.embedding(torch.tensor([2, 0, 2]), weight, sparse=True).sum().backward()
    assert weight.grad is not None
    assert weight.grad.is_sparse
    used(bucket, weight)
    bucket.close()
    bucket.open()
    assert weight.grad.tolist() == [[1, 1], [0, 0], [2, 2]]


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
    bucket = Bucket(part, 0, CPU, None, num_parts=4, num_unused=2)
    assert (bucket.wire.numel(), [view.numel() for view in bucket.views]) == (8, [2, 3])
    assert bucket.unused.numel() == len(part)
