from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.launcher.layout.microbatch import (
    LEAST_SAMPLES,
    MOST_IDLE,
    MOST_ON_GPUS,
    MOST_SAMPLES,
    default_samples,
    divisors,
    enough_microbatches,
    idle_about,
    smaller_samples,
)


@pytest.mark.parametrize(
    ("batch_size", "num_stages", "num_bundles", "samples"),
    [
        (256, 1, 1, 32),
        (256, 1, 8, 32),  # one each: no pipeline to fill
        (256, 2, 1, 32),
        (256, 2, 4, 8),  # eight GPUs, two to a bundle: 8 micro-batches for each bundle
        (1280, 2, 20, 8),
        (256, 2, 20, 8),  # the batch allows no more
        (100, 1, 3, 20),  # as even as it gets
        (7, 2, 1, 7),
        (13 * 17, 2, 4, 13),
    ],
)
def test_stages_of_all_bundles_get_enough_microbatches_where_the_batch_allows(
    batch_size: int, num_stages: int, num_bundles: int, samples: int
) -> None:
    assert default_samples(batch_size, num_stages, num_bundles) == samples


@pytest.mark.parametrize(
    ("batch_size", "num_stages", "num_bundles", "samples"),
    [
        (256, 1, 1, 128),
        (1024, 1, 8, 128),
        (96, 1, 1, 96),
        (256, 2, 1, 32),  # a pipeline is to be full all the same
        (2048, 2, 1, 128),
        (127, 1, 1, 127),
    ],
)
def test_gpus_get_more_at_once_where_the_batch_allows(
    batch_size: int, num_stages: int, num_bundles: int, samples: int
) -> None:
    assert default_samples(batch_size, num_stages, num_bundles, has_gpus=True) == samples


@pytest.mark.parametrize(
    ("samples", "smaller"), [(128, 64), (64, 32), (32, 0), (96, 48), (48, 24), (127, 0), (8, 0)]
)
def test_what_does_not_fit_is_halved_down_to_what_is_usual(samples: int, smaller: int) -> None:
    assert smaller_samples(samples) == smaller


@given(st.integers(1, MOST_ON_GPUS))
def test_three_starts_are_enough_to_find_a_size_or_to_give_up(samples: int) -> None:
    tried = [samples]
    while smaller_samples(tried[-1]):
        tried.append(smaller_samples(tried[-1]))
    assert len(tried) <= 3
    assert all(samples % size == 0 for size in tried)


@given(st.integers(1, 5000))
def test_divisors_are_all_that_divide(number: int) -> None:
    assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]


def test_a_batch_of_any_size_is_cut_without_counting_up_to_it() -> None:
    assert default_samples(10**10, 1, 1) == 32


@given(st.integers(1, 5000), st.integers(1, 8), st.integers(1, 100))
def test_it_is_the_largest_that_leaves_little_idle(batch: int, stages: int, bundles: int) -> None:
    chosen = default_samples(batch, stages, bundles)
    assert batch % chosen == 0
    assert chosen <= MOST_SAMPLES

    def is_full(samples: int) -> bool:
        count = batch // samples
        enough = count >= bundles * enough_microbatches(stages)
        return enough and idle_about(count, stages, bundles) <= MOST_IDLE

    usual = [d for d in range(LEAST_SAMPLES, MOST_SAMPLES + 1) if batch % d == 0]
    if any(map(is_full, usual)):
        assert is_full(chosen)
        assert not any(is_full(d) for d in usual if d > chosen)


@given(st.integers(1, 40))
def test_enough_is_four_per_stage_and_little_idle(num_stages: int) -> None:
    count = enough_microbatches(num_stages)
    assert idle_about(count, num_stages, 1) <= MOST_IDLE + 1e-9
    assert num_stages == 1 or count >= 4 * num_stages
