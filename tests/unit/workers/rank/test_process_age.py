"""How long a rank has been one."""

from __future__ import annotations

import time

import psutil
import pytest

from bundlerun.launcher.ranks.standby import TAKEN_VARIABLE
from bundlerun.workers.rank.life.liveness import process_age_s


def test_a_rank_is_as_old_as_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TAKEN_VARIABLE, raising=False)
    assert process_age_s() == pytest.approx(time.time() - psutil.Process().create_time(), abs=2)


def test_one_that_was_a_standby_counts_from_when_it_became_a_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(TAKEN_VARIABLE, repr(time.monotonic() - 1000))
    assert process_age_s() == pytest.approx(1000, abs=5)
