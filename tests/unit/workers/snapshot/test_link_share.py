"""Pauses that keep what is sent to a share of the link."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundlerun.workers.snapshot.link_share import PART_BYTES, LinkShare

SPEED = 100e6


def paced(share: float, seconds: list[float]) -> tuple[LinkShare, list[float]]:
    """Parts that take so many seconds each; and the pauses after them."""
    pauses: list[float] = []
    now = iter([edge for took in seconds for edge in (0.0, took)])
    link = LinkShare(share, clock=lambda: next(now), sleep=pauses.append)
    for _ in seconds:
        link.begins()
        link.sent(PART_BYTES)
    return link, pauses


def test_a_quarter_pauses_three_times_as_long_as_it_sends() -> None:
    part_s = PART_BYTES / SPEED
    link, pauses = paced(0.25, [part_s] * 3)
    assert pauses == pytest.approx([3 * part_s] * 3)
    assert link.bytes_per_s == pytest.approx(SPEED)
    assert link.paused_s == pytest.approx(9 * part_s)


def test_the_whole_link_takes_no_pause_and_needs_no_word_of_each_part() -> None:
    link, pauses = paced(1.0, [0.1, 0.2, 0.1])
    assert pauses == []
    assert link.part_bytes == 0


def test_a_part_that_others_have_slowed_down_is_followed_by_a_shorter_pause() -> None:
    part_s = PART_BYTES / SPEED
    _, pauses = paced(0.5, [part_s, 1.5 * part_s, 3 * part_s])
    assert pauses == pytest.approx([part_s, 0.5 * part_s])


def test_a_link_that_has_become_slower_is_judged_by_its_last_parts() -> None:
    part_s = PART_BYTES / SPEED
    link, pauses = paced(0.5, [part_s, *([4 * part_s] * 32)])
    assert link.bytes_per_s == pytest.approx(SPEED / 4)
    assert pauses[-1] == pytest.approx(4 * part_s)


@given(
    st.floats(0.01, 0.99),
    st.lists(st.floats(1e-4, 1.0), min_size=1, max_size=30),
)
def test_never_more_than_the_share_of_the_fastest(share: float, seconds: list[float]) -> None:
    link, pauses = paced(share, seconds)
    rate = len(seconds) * PART_BYTES / (sum(seconds) + sum(pauses))
    assert rate <= share * link.bytes_per_s * (1 + 1e-9)
