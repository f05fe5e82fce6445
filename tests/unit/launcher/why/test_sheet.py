from __future__ import annotations

from bundlerun.launcher.why.sheet import (
    PHASES,
    SINCE,
    TOTAL,
    Message,
    Seat,
    Sheet,
    Talk,
)
from bundlerun.workers.rank.meters import Meters

SEAT = Seat(
    rank=3, world_size=4, node=1, bundle=1, stage=1, replica=0, limit_s=20.0, token=0xFFFFFFFF
)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def entered() -> tuple[Sheet, Meters, Clock]:
    clock, sheet = Clock(), Sheet.private()
    sheet.enter(SEAT, clock.now)
    return sheet, Meters(clock, sheet=sheet), clock


def test_every_number_has_a_word_of_its_own() -> None:
    words = [*SINCE.values(), *TOTAL.values()]
    assert len(set(words)) == 2 * len(PHASES)


def test_a_seat_is_read_as_it_was_written() -> None:
    sheet, _, _ = entered()
    assert sheet.is_filled
    assert sheet.seat == SEAT
    sheet.clear()
    assert not sheet.is_filled


def test_a_rank_stands_in_the_innermost_phase_since_something_has_changed() -> None:
    sheet, meters, clock = entered()
    assert sheet.standing(103.0).talk is Talk.MEETING
    sheet.talks(Talk.NONE)
    clock.now = 1e9
    sheet.awaits(Message.GRADIENT, 1, 5)
    with meters.phase("validate"):
        clock.now += 1.0
        with meters.phase("receive"):
            clock.now += 2.0
            inside = sheet.standing(clock.now)
        clock.now += 3.0
        between = sheet.standing(clock.now)
    assert (inside.phase, inside.peer, inside.message, inside.microbatch, inside.age_s) == (
        "receive", 1, Message.GRADIENT, 5, 2.0,
    )  # fmt: skip
    assert (between.phase, between.peer, between.age_s) == ("validate", -1, 3.0)
    assert sheet.standing(clock.now).phase == ""


def test_what_fails_is_where_the_rank_stood() -> None:
    sheet, meters, clock = entered()
    sheet.talks(Talk.NONE)
    clock.now = 1e9
    try:
        with meters.phase("receive"):
            clock.now += 20.0
            raise TimeoutError
    except TimeoutError:
        pass
    assert sheet.standing(clock.now).phase == "receive"
    assert sheet.age_s(clock.now) == 20.0


def test_legs_and_copies_go_on_beside_the_ranks_own_thread() -> None:
    sheet, meters, clock = entered()
    sheet.talks(Talk.NONE)
    clock.now = 1e9
    with meters.phase("sync_wait"):
        with meters.phase("exchange"), meters.phase("snapshot"):
            clock.now += 4.0
            found = sheet.standing(clock.now)
        # A leg that ends is no step of the rank's own.
        assert sheet.age_s(clock.now) == 4.0
    assert (found.phase, found.legs) == ("sync_wait", {"exchange": 4.0})


def test_an_epoch_counts_from_its_beginning() -> None:
    sheet, meters, clock = entered()
    sheet.scheduled(5.0, 1.0)
    meters.restart()
    with meters.phase("data"):
        clock.now += 2.0
    sheet.count(8)
    sheet.scheduled(6.0, 1.5)
    assert (sheet.cpu_s, sheet.run_delay_s, sheet.num_microbatches) == (1.0, 0.5, 8)
    assert sheet.seconds()["data"] == 2.0
    assert meters.wall_s() == 2.0
