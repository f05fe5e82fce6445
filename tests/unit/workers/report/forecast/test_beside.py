"""Steps of an epoch beside a forecast: what is said, and which term is off."""

from __future__ import annotations

import pytest

from bundlerun.launcher.planning.candidate import Forecast, Term
from bundlerun.launcher.why.sums import RankSums
from bundlerun.workers.report.forecast.beside import Beside, beside

NUM_STEPS = 10
TERMS = {
    Term.COMPUTE: 0.6,
    Term.BUBBLE: 0.1,
    Term.LINKS: 0.0,
    Term.EXCHANGE: 0.2,
    Term.UPDATE: 0.05,
    Term.OTHER: 0.05,
}
FORECAST = Forecast(step_s=1.0, terms=TERMS, bubble=0.3, egress_bytes=0, exchange_s=0.4, memory=())


def rank(number: int, wall_s: float, **phases: float) -> RankSums:
    """Seconds of a step, of each phase."""
    return RankSums(
        rank=number,
        node=0,
        node_name="n",
        local_rank=number,
        bundle=0,
        stage=number,
        replica=0,
        wall_s=wall_s * NUM_STEPS,
        seconds={phase: seconds * NUM_STEPS for phase, seconds in phases.items()},
        num_microbatches=100,
    )


def put(*ranks: RankSums) -> Beside:
    found = beside(FORECAST, ranks, NUM_STEPS)
    assert found is not None
    return found


def test_what_comes_as_foreseen_has_nothing_off() -> None:
    waits = {"receive": 0.1, "sync_wait": 0.2}
    found = put(
        rank(0, 1.0, forward=0.2, backward=0.4, optimizer=0.05, **waits),
        rank(1, 1.0, forward=0.1, backward=0.2, receive=0.6, sync_wait=0.1),
    )
    assert found.measured == pytest.approx(TERMS)
    assert found.off is None
    assert found.text == "1.000 s a step, foreseen 1.000: 0% less"


@pytest.mark.parametrize(
    ("phases", "off"),
    [
        ({"backward": 0.9}, Term.COMPUTE),
        ({"sync_wait": 0.7}, Term.EXCHANGE),
        ({"receive": 0.6}, Term.LINKS),
        ({"send": 0.5, "receive": 0.1}, Term.LINKS),
        ({"optimizer": 0.55}, Term.UPDATE),
        ({"data": 0.5}, Term.OTHER),
    ],
)
def test_the_term_that_is_off_is_named(phases: dict[str, float], off: Term) -> None:
    usual = {"forward": 0.2, "backward": 0.4, "optimizer": 0.05, "receive": 0.1, "sync_wait": 0.2}
    found = put(rank(0, 1.5, **{**usual, **phases}))
    assert found.part == pytest.approx(0.5)
    assert found.off is off
    assert f"50% more; what is off is {off.value}" in found.text
    assert found.row(3, 40)["off"] == off.value


def test_a_rank_that_waits_for_one_whose_sums_are_late_waits_for_sums() -> None:
    # Stage 1 has its sums early, and then waits for the next step's first message.
    found = put(
        rank(0, 1.3, forward=0.1, backward=0.3, sync_wait=0.5, receive=0.1),
        rank(1, 1.3, forward=0.2, backward=0.4, optimizer=0.05, receive=0.6),
    )
    assert found.off is Term.EXCHANGE
    assert found.measured[Term.BUBBLE] == pytest.approx(0.1)


def test_steps_that_take_less_name_what_takes_less() -> None:
    found = put(rank(0, 0.7, forward=0.1, backward=0.2, receive=0.1, sync_wait=0.2))
    assert found.off is Term.COMPUTE
    assert "30% less; what is off is computing: 0.300 s, foreseen 0.600" in found.text


def test_of_very_many_ranks_nothing_is_known() -> None:
    assert beside(FORECAST, (), NUM_STEPS) is None
    assert beside(FORECAST, (rank(0, 1.0),), 0) is None


def test_much_longer_steps_are_told_as_times() -> None:
    assert "foreseen 1.000: 3.0 times it; what is off" in put(rank(0, 3.0, forward=3.0)).text
