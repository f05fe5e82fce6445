"""Which rank is told to be slow while a run goes on."""

from __future__ import annotations

from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.why.pace import SlowBy
from bundlerun.workers.data.order import Speeds
from bundlerun.workers.shares.balance import Change
from bundlerun.workers.shares.slow import Found, Slowness
from bundlerun.workers.shares.spent import Spent
from bundlerun.workers.shares.words import change_text, found_text

TOPOLOGY = Topology(Shape((1,)), (1, 1, 1))
NODES = ("n0", "n1", "n2")
_COUNT = 4


class Play:
    """Steps of 0.5 s, in which each rank has four micro-batches."""

    def __init__(self) -> None:
        self.slowness = Slowness(TOPOLOGY, NODES)
        self._spent = {rank: Spent() for rank in range(3)}
        self.step = 0
        self.found: list[tuple[int, Found]] = []

    def run(self, num_steps: int, seconds: tuple[float, ...], delay_s: float = 0.0) -> None:
        for _ in range(num_steps):
            told = dict(self._spent)
            for rank, was in told.items():
                self._spent[rank] = Spent(
                    was.compute_s + _COUNT * seconds[rank],
                    was.wall_s + 0.5,
                    was.run_delay_s + (delay_s if rank == 1 else 0.0),
                    was.num_microbatches + _COUNT,
                )
            self.step += 1
            found = self.slowness.see(self.step, told)
            if found is not None:
                self.found.append((self.step, found))


def test_a_rank_that_stays_slow_is_named_once_and_taken_back_once() -> None:
    play = Play()
    play.run(40, (0.05, 0.05, 0.05))
    assert play.found == []
    play.run(40, (0.05, 0.1, 0.05))
    ((step, found),) = play.found
    assert found.slow is not None
    assert (found.slow.rank, found.slow.why) == (1, SlowBy.COMPUTE)
    # A stretch lasts 2 s, that is 4 steps; the first one may have begun before.
    assert step <= 40 + 3 * 4 + 1
    text = found_text(found)
    assert text.startswith("rank 1 (node n1, stage 0 of bundle 1) computes 2.0 times as long")
    assert f"100 ms a micro-batch, its peers 50 ms to 50 ms, in steps {step - 4}" in text
    play.run(40, (0.05, 0.05, 0.05))
    assert len(play.found) == 2
    assert play.found[1][1].slow is None
    assert found_text(play.found[1][1]).startswith("all ranks compute as their peers again")


def test_a_hitch_is_not_named() -> None:
    play = Play()
    play.run(20, (0.05, 0.05, 0.05))
    play.run(3, (0.05, 0.3, 0.05))
    play.run(20, (0.05, 0.05, 0.05))
    assert play.found == []


def test_who_has_no_core_for_a_moment_is_not_blamed() -> None:
    play = Play()
    play.run(40, (0.05, 0.1, 0.05), delay_s=0.2)
    assert play.found == []


def test_other_shares_are_told_with_their_numbers() -> None:
    change = Change(
        first_step=60,
        speeds=Speeds((0.033, 0.066, 0.033), (0.0, 0.0, 0.0)),
        counts=(6, 3, 6),
        before=(5, 5, 5),
        span_s=0.198,
        span_before_s=0.33,
        slowest=1,
    )
    assert change_text(change, TOPOLOGY, NODES) == (
        "micro-batches are shared out anew from step 61 on: 6 + 3 + 6 (before 5 + 5 + 5): "
        "bundle 1 takes 66 ms for one (rank 1 of node n1), the fastest 33 ms; the longest "
        "computes 198 ms a step instead of 330 ms"
    )
