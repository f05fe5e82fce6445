from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, replace

import pytest

from bundlerun.launcher.why.pace import Bound, Pace, SlowBy, pace_of
from bundlerun.launcher.why.pace_words import pace_lines, pace_text
from bundlerun.launcher.why.rows import epoch_of, why_row
from bundlerun.launcher.why.sums import RankSums, Sent

WALL_S = 100.0


def sums(rank: int, seconds: Mapping[str, float], **values: float) -> RankSums:
    """Of rank 2 b + s: stage s of bundle b, on node b."""
    found = RankSums(
        rank=rank,
        node=rank // 2,
        node_name=f"n{rank // 2}",
        local_rank=rank % 2,
        bundle=rank // 2,
        stage=rank % 2,
        replica=0,
        wall_s=WALL_S,
        seconds=seconds,
        num_microbatches=100,
    )
    return replace(found, **values)  # type: ignore[arg-type]


def works(rank: int, **seconds: float) -> RankSums:
    """Computes for 40 s; what is left goes into waiting for the other stage."""
    told = {"forward": 20.0, "backward": 20.0, **seconds}
    return sums(rank, {"receive": max(0.0, 95.0 - sum(told.values())), **told})


EVEN = [works(0, forward=60.0), works(1), works(2, forward=60.0), works(3)]


@pytest.mark.parametrize(
    ("critical", "end", "bound", "share"),
    [
        (works(1, forward=70.0), {}, Bound.COMPUTE, 0.9),
        (works(1, data=50.0), {}, Bound.DATA, 0.5),
        (works(1, optimizer=50.0), {}, Bound.OPTIMIZER, 0.5),
        (works(1, checkpoint=50.0), {}, Bound.CHECKPOINT, 0.5),
        (works(1, sync_wait=45.0), {}, Bound.EXCHANGE, 0.45),
        (works(1, snapshot_wait=45.0), {}, Bound.SNAPSHOT, 0.45),
        (works(1, forward=50.0), {"checkpoint": 300.0}, Bound.CHECKPOINT, 0.75),
        (works(1, forward=50.0), {"validate": 300.0}, Bound.VALIDATION, 0.75),
        (sums(1, {"forward": 10.0, "backward": 10.0, "receive": 30.0}), {}, Bound.REST, 0.5),
        (sums(1, {"forward": 10.0, "backward": 10.0, "receive": 70.0}), {}, Bound.PIPELINE, 0.7),
    ],
)
def test_what_the_rank_that_waits_least_spends_its_time_on_is_the_bound(
    critical: RankSums, end: Mapping[str, float], bound: Bound, share: float
) -> None:
    waits = sums(0, {"forward": 2.0, "backward": 2.0, "receive": 91.0})
    pace = pace_of([waits, critical], end)
    assert pace is not None
    assert (pace.bound, pace.share, pace.rank, pace.stage) == (bound, share, 1, 1)


def test_a_wait_for_a_wire_that_was_busy_is_a_link() -> None:
    sent = Sent("n1", 2e6, 60.0)
    first = replace(sums(0, {"forward": 10.0, "receive": 80.0}), sent=sent)
    pace = pace_of([first, sums(3, {"forward": 10.0, "receive": 85.0})])
    assert pace is not None
    assert pace.bound is Bound.LINK
    assert pace.wire is not None
    assert (pace.wire.source, pace.wire.to, pace.wire.share) == ("n0", "n1", 0.6)
    assert "the link from n0 to n1, 80% of the time" in pace_text(pace, [first])
    idle = replace(first, sent=Sent("n1", 2e6, 5.0))
    found = pace_of([idle, sums(3, {"forward": 10.0, "receive": 85.0})])
    assert found is not None
    assert found.bound is Bound.PIPELINE


def test_a_wait_for_a_stage_that_is_in_its_exchange_is_for_the_exchange() -> None:
    sent = Sent("n1", 2e6, 90.0)
    # Of two stages that share a network one has its sums first; it waits a little less in all.
    first = replace(sums(0, {"forward": 12.0, "sync_wait": 35.0, "receive": 50.0}), sent=sent)
    last = sums(1, {"forward": 10.0, "sync_wait": 75.0, "receive": 12.0})
    pace = pace_of([first, last])
    assert pace is not None
    assert (pace.bound, pace.share, pace.rank) == (Bound.EXCHANGE, 0.75, 0)
    # Another bundle waits in its sums for this one, whatever this one does.
    other = replace(last, rank=3, node=1, node_name="n1", bundle=1)
    found = pace_of([first, other])
    assert found is not None
    assert (found.bound, found.share) == (Bound.LINK, 0.5)


def test_ranks_that_are_alike_are_not_told_of() -> None:
    pace = pace_of(EVEN)
    assert pace is not None
    assert pace.slow is None
    # Noise of a third more is none that is told.
    noisy = pace_of([works(0), works(1), works(2), works(3, forward=33.0)])
    assert noisy is not None
    assert noisy.slow is None


@pytest.mark.parametrize(
    ("slow", "why"),
    [
        (works(3, forward=60.0), SlowBy.COMPUTE),
        (works(3, data=40.0), SlowBy.DATA),
        (works(3, optimizer=20.0), SlowBy.OPTIMIZER),
        (replace(works(3, forward=60.0), run_delay_s=45.0), SlowBy.PROCESSOR),
    ],
)
def test_a_rank_that_costs_more_than_its_peers_is_named(slow: RankSums, why: SlowBy) -> None:
    ranks = [works(0), works(1), works(2), slow]
    pace = pace_of(ranks)
    assert pace is not None
    assert pace.slow is not None
    assert (pace.slow.rank, pace.slow.why) == (3, why)
    assert "rank 3 (node n1, stage 1 of bundle 1)" in pace_text(pace, ranks)


def test_where_all_want_a_core_nobody_is_blamed() -> None:
    starved = [replace(rank, run_delay_s=70.0 + rank.rank) for rank in EVEN]
    pace = pace_of(starved)
    assert pace is not None
    assert pace.slow is None
    assert "ranks had no core for 72% of the time" in pace_text(pace, starved)
    # Nor is who had it least.
    unlucky = [*starved[:3], replace(works(3, forward=60.0), run_delay_s=95.0)]
    found = pace_of(unlucky)
    assert found is not None
    assert found.slow is None
    assert any("had no core for 72% of the time" in line for line in pace_lines(pace, starved))


def test_uneven_stages_are_told_with_what_may_be_done() -> None:
    pace = pace_of([works(0), works(1, forward=65.0)])
    assert pace is not None
    assert pace.uneven == 2.12
    assert any("another --cut" in line for line in pace_lines(pace, EVEN))


def test_of_too_little_nothing_is_said() -> None:
    assert pace_of([]) is None
    assert pace_of([replace(works(0), wall_s=1.0)]) is None
    assert pace_of([replace(works(0), num_microbatches=7)]) is None


def test_a_row_is_read_as_it_was_written() -> None:
    ranks = [replace(works(rank), sent=Sent("n1", 5.0, 1.0)) for rank in range(100)]
    pace = pace_of(ranks)
    assert pace is not None
    row = json.loads(json.dumps(why_row(3, 40, pace, ranks, {"checkpoint": 0.5}, "text")))
    epoch = epoch_of(row)
    assert epoch is not None
    assert (epoch.epoch, epoch.step, epoch.text, epoch.pace) == (3, 40, "text", pace)
    assert len(epoch.ranks) == 64
    assert epoch.ranks[0] == ranks[0]
    assert Pace.from_row(json.loads(json.dumps(asdict(pace)))) == pace
    assert epoch_of({"epoch": 1}) is None
