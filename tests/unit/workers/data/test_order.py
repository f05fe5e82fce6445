"""Which sample is in which micro-batch, and which bundle does it."""

from __future__ import annotations

import math
from itertools import chain, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.workers.data.order import (
    NEAR_EQUAL,
    Speeds,
    block_order,
    dealt_microbatches,
    mix_seed,
    num_steps,
    repeated_order,
    sample_order,
    share_out,
    step_microbatches,
)

SECONDS = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=8)


@given(st.integers(0, 2**40), st.integers(0, 10**6), st.integers(0, 300))
def test_an_order_has_every_sample_once(seed: int, epoch: int, num_samples: int) -> None:
    order = sample_order(seed, epoch, num_samples)

    assert sorted(order) == list(range(num_samples))


def test_the_order_depends_on_seed_and_epoch_and_on_nothing_else() -> None:
    orders = {(s, e): tuple(sample_order(s, e, 50)) for s in range(10) for e in range(10)}

    assert len(set(orders.values())) == 100
    assert orders[3, 4] == tuple(sample_order(3, 4, 50))
    # A resumed run goes on with the order that it began with, so this never changes.
    assert sample_order(1, 2, 8) == [2, 1, 0, 4, 5, 6, 3, 7]


@given(
    st.integers(0, 2**40),
    st.lists(st.integers(0, 9), max_size=20),
    st.integers(0, 60),
    st.integers(1, 10),
)
def test_an_order_of_blocks_has_every_sample_once_and_keeps_blocks_together(
    seed: int, sizes: list[int], window: int, run: int
) -> None:
    order = block_order(seed, 3, sizes, window, run)
    assert sorted(order) == list(range(sum(sizes)))
    assert order == block_order(seed, 3, sizes, window, run)

    # A window ends as soon as it has enough samples: it is longer by less than a block.
    longest = window + max(sizes, default=0)
    block_of = [block for block, size in enumerate(sizes) for _ in range(size)]
    for block in range(len(sizes) if window else 0):
        places = [place for place, index in enumerate(order) if block_of[index] == block]
        assert not places or places[-1] - places[0] < longest


def test_runs_of_a_block_stay_next_to_each_other() -> None:
    sizes = [10] * 30
    order = block_order(1, 2, sizes, 100, 5)
    runs = [order[first : first + 5] for first in range(0, 300, 5)]
    assert all(len({index // 10 for index in run}) == 1 for run in runs)
    assert any(run != sorted(run) for run in runs)
    # The halves of most blocks are apart, and other windows and seeds have others.
    pairs = [one[0] // 10 == two[0] // 10 for one, two in pairwise(runs)]
    assert sum(pairs) < 15
    assert order != block_order(2, 2, sizes, 100, 5) != block_order(2, 3, sizes, 100, 5)


def test_a_window_of_all_is_the_order_of_samples_that_are_files() -> None:
    for window in (0, 10, 99):
        assert block_order(1, 2, [3, 5, 2], window) == sample_order(1, 2, 10)
    orders = {tuple(block_order(s, e, [3, 5, 2], 4)) for s in range(5) for e in range(5)}
    assert len(orders) == 25
    # A resumed run goes on with the order that it began with, so this never changes.
    assert block_order(1, 2, [3, 3, 2, 3], 4) == [7, 0, 1, 6, 2, 10, 5, 3, 4, 8, 9]


@given(st.lists(st.integers(0, 2**63), min_size=1, max_size=4), st.data())
def test_seeds_differ_in_about_half_of_their_bits(parts: list[int], data: st.DataObject) -> None:
    changed = list(parts)
    changed[data.draw(st.integers(0, len(parts) - 1))] += 1

    assert 8 <= (mix_seed(*parts) ^ mix_seed(*changed)).bit_count() <= 56


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 6))
def test_an_epoch_drops_nothing(num_samples: int, microbatch_size: int, per_step: int) -> None:
    batch_size = microbatch_size * per_step
    order = sample_order(0, 0, num_samples)
    steps = [
        step_microbatches(order, step, batch_size=batch_size, microbatch_size=microbatch_size)
        for step in range(num_steps(num_samples, batch_size))
    ]

    assert [i for step in steps for microbatch in step for i in microbatch] == order
    for step in steps[:-1]:
        assert [len(microbatch) for microbatch in step] == [microbatch_size] * per_step
    assert {len(microbatch) for microbatch in steps[-1][:-1]} <= {microbatch_size}
    assert 1 <= len(steps[-1][-1]) <= microbatch_size


def test_the_last_step_and_its_last_microbatch_are_short() -> None:
    steps = [
        step_microbatches(range(11), step, batch_size=4, microbatch_size=2) for step in range(3)
    ]

    assert steps == [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10]]]


@given(st.integers(1, 60), st.integers(1, 5))
def test_a_repeated_order_has_each_of_its_samples_several_times(count: int, repeats: int) -> None:
    order = sample_order(0, 0, count)
    found = repeated_order(order, repeats)
    assert len(found) == len(set(found)) == count
    assert [i % count for i in found] == [i for i in order for _ in range(repeats)][:count]
    assert [i // count for i in found] == ([*range(repeats)] * count)[:count]


@given(st.integers(1, 200), st.integers(1, 6), st.integers(1, 8))
def test_a_microbatch_has_what_a_rank_of_repeated_augmentation_has(
    count: int, microbatch_size: int, num_ranks: int
) -> None:
    batch_size = microbatch_size * num_ranks
    order = repeated_order(sample_order(0, 0, count), 3)
    # As the sampler that torchvision's reference has from DeiT: each rank takes turns.
    of_ranks = [order[rank::num_ranks] for rank in range(num_ranks)]
    for step in range(num_steps(count, batch_size)):
        cut = {"batch_size": batch_size, "microbatch_size": microbatch_size}
        found = dealt_microbatches(order, step, **cut)
        plain = step_microbatches(order, step, **cut)
        assert [len(each) for each in found] == [len(each) for each in plain]
        assert sorted(chain(*found)) == sorted(chain(*plain))
        if sum(map(len, found)) == batch_size:
            first = step * microbatch_size
            assert found == [each[first : first + microbatch_size] for each in of_ranks]


def shared(num_microbatches: int, seconds: list[float]) -> list[int]:
    """By what a micro-batch takes each bundle."""
    return share_out(num_microbatches, Speeds(tuple(seconds), (0.0,) * len(seconds)))


def test_equal_bundles_share_alike_and_the_first_get_what_is_left() -> None:
    assert shared(8, [1.0, 1.0]) == [4, 4]
    assert shared(7, [0.2, 0.2, 0.2]) == [3, 2, 2]
    assert shared(1, [1.0, 1.0]) == [1, 0]


def test_noise_changes_nothing() -> None:
    assert shared(100, [1.0, 1.09, 1.02]) == shared(100, [1.05, 1.0, 1.08]) == [34, 33, 33]


def test_a_bundle_of_half_the_speed_gets_half_as_many() -> None:
    assert shared(9, [1.0, 2.0]) == [6, 3]


@pytest.mark.parametrize("unknown", [0.0, -1.0, math.nan, math.inf])
def test_an_unknown_speed_counts_as_the_mean(unknown: float) -> None:
    assert shared(8, [unknown, 1.0, 1.0, 1.0]) == [2, 2, 2, 2]
    assert shared(4, [unknown, unknown]) == [2, 2]


def test_a_long_pipeline_gets_fewer_as_it_fills_first() -> None:
    # 4 and 3: done at 4 s and 4.5 s; 3 and 4 would be at 3 s and 5.5 s.
    speeds = Speeds((1.0, 1.0), (0.0, 1.5))
    assert share_out(7, speeds) == [4, 3]
    assert speeds.span_s([4, 3]) == 4.5
    assert speeds.span_s([3, 4]) == 5.5
    # What has nothing to do fills nothing.
    assert speeds.span_s([4, 0]) == 4.0


def _makespan(counts: list[int], seconds: list[float]) -> float:
    return max(count * time for count, time in zip(counts, seconds, strict=True))


@given(st.integers(0, 60), SECONDS)
def test_no_other_sharing_is_done_much_earlier(num_microbatches: int, seconds: list[float]) -> None:
    counts = shared(num_microbatches, seconds)

    assert sum(counts) == num_microbatches
    # No sharing beats this bound: by a given time, each bundle has done only so many whole ones.
    candidates = sorted(k * time for time in seconds for k in range(num_microbatches + 1))
    best = next(
        end
        for end in candidates
        if sum(math.floor(end / time + 1e-9) for time in seconds) >= num_microbatches
    )
    assert _makespan(counts, seconds) <= best * NEAR_EQUAL * (1 + 1e-6)


@given(st.integers(1, 60), st.lists(st.sampled_from([1.0, 1.5, 2.0, 4.0]), min_size=1, max_size=6))
def test_a_faster_bundle_never_gets_less(num_microbatches: int, seconds: list[float]) -> None:
    counts = shared(num_microbatches, seconds)

    for time, count in zip(seconds, counts, strict=True):
        for other, others_count in zip(seconds, counts, strict=True):
            assert time >= other or count >= others_count
