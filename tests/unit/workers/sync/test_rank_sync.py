"""The sums of a rank: in which order they are begun, and what is kept for which."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bundlerun.workers.sync.rank_sync import RankSync, SharedSum


class Noting:
    """Stands for a `GradientSync`; notes what is asked of it."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self._name, self._notes = name, notes
        self.extra = torch.zeros(1)
        self.feedback_situation = name

    def launch(self) -> None:
        self._notes.append(f"launch {self._name}")

    def take(self) -> None:
        self._notes.append(f"take {self._name}")

    def finish(self) -> None:
        self.launch()
        self.take()


def sums(*, is_serial: bool = False) -> tuple[RankSync, list[Any], list[str]]:
    """Those of a rank that shares with two sets of stages."""
    notes: list[str] = []
    made: list[Any] = [Noting(name, notes) for name in ("a", "bb", "ccc")]
    shared = [SharedSum(stages=(0, i), copies={}, num_holders=2, sync=made[i]) for i in (1, 2)]
    return RankSync(made[0], shared, is_serial=is_serial), made, notes


@pytest.mark.parametrize(
    ("is_serial", "wanted"),
    [
        (False, ["launch a", "launch bb", "launch ccc", "take a", "take bb", "take ccc"]),
        (True, ["launch a", "take a", "launch bb", "take bb", "launch ccc", "take ccc"]),
    ],
)
def test_what_is_shared_leaves_after_the_stages_own(is_serial: bool, wanted: list[str]) -> None:
    sync, _, notes = sums(is_serial=is_serial)
    sync.finish()
    assert notes == wanted


def test_the_situation_is_another_one_where_one_of_the_sums_is() -> None:
    sync, _, _ = sums()
    other, made, _ = sums()
    assert sync.feedback_situation == other.feedback_situation
    made[2].feedback_situation = "another"
    assert sync.feedback_situation != other.feedback_situation
