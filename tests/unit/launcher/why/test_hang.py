from __future__ import annotations

from dataclasses import replace

import pytest

from bundlerun.launcher.why.hang import Cause, hang_of, is_hang
from bundlerun.launcher.why.hang_words import hang_text, standing_lines
from bundlerun.launcher.why.sheet import Message, Talk
from bundlerun.launcher.why.stacks import Frame
from bundlerun.launcher.why.stands import Helper, Stand
from tests.unit.launcher.why.stands import OURS, USERS, receives, stand, thread

SYNC = "sync_wait"
LOADS = Helper(pid=9, state="S", kernel="", threads=thread(Frame("/home/u/data.py", 7, "get")))
IDLE = Helper(pid=8, state="S", kernel="", threads=thread(OURS))
ASLEEP = Helper(pid=9, state="D", kernel="", threads=thread(Frame("/home/u/data.py", 7, "get")))


def behind(first: Stand) -> list[Stand]:
    """Rank 0 is `first`; the others wait for it, through each other."""
    return [first, receives(1, 0), receives(2, 3, Message.GRADIENT), stand(3, SYNC)]


@pytest.mark.parametrize(
    ("first", "cause", "place"),
    [
        (stand(0, "forward", threads=thread(OURS, USERS)), Cause.CODE, USERS),
        (stand(0, "backward", threads=thread(OURS, USERS)), Cause.CODE, USERS),
        (stand(0, "data", helpers=(IDLE, LOADS)), Cause.DATA, LOADS.threads[0].frames[0]),
        (stand(0, "data", threads=thread(USERS)), Cause.DATA, USERS),
        (stand(0, "data", helpers=(IDLE, ASLEEP)), Cause.DISK, LOADS.threads[0].frames[0]),
        (stand(0, "checkpoint", threads=thread(USERS), state="D"), Cause.CHECKPOINT, USERS),
        (stand(0, "", threads=thread(USERS)), Cause.CODE, USERS),
        (stand(0, "", threads=thread(OURS)), Cause.UNKNOWN, OURS),
        (stand(0, "forward", threads=thread(USERS), state="T"), Cause.STOPPED, None),
        (replace(receives(0, 1), state="T"), Cause.STOPPED, None),
    ],
)
def test_the_rank_that_waits_for_nobody_is_the_story(
    first: Stand, cause: Cause, place: Frame | None
) -> None:
    hang = hang_of(behind(first))
    assert hang is not None
    assert (hang.cause, hang.ranks, hang.place) == (cause, (0,), place)
    assert hang.waiting == (1, 2, 3)
    text = hang_text(hang, behind(first))
    assert "rank 0 (node n0, local rank 0, stage 0 of bundle 0)" in text
    assert text.endswith("ranks 1, 2, 3 waited for it")


def test_of_two_that_do_something_the_one_that_more_wait_for_is_told() -> None:
    stands = [stand(0, "optimizer"), receives(1, 2), receives(2, 3), stand(3, "forward")]
    hang = hang_of(stands)
    assert hang is not None
    assert hang.ranks == (3,)


def test_a_rank_that_says_nothing_is_missed_by_those_that_wait_for_it() -> None:
    hang = hang_of([receives(1, 0), stand(3, SYNC)])
    assert hang is not None
    assert (hang.cause, hang.ranks) == (Cause.SILENT, (0,))
    assert "rank 0 told nothing" in hang_text(hang, [receives(1, 0)])


def test_where_all_wait_a_message_is_lost_between_two() -> None:
    stands = [
        replace(receives(0, 1, Message.GRADIENT), unsent={"10.0.0.2": 4096}),
        receives(1, 0),
    ]
    hang = hang_of(stands)
    assert hang is not None
    assert (hang.cause, hang.ranks) == (Cause.LINK, (0, 1))
    # Of one node: no cable is between the two.
    assert "between ranks 0, 1 came through between processes of node n0" in hang_text(hang, stands)


def test_where_all_are_in_a_sum_it_is_that_of_their_stage() -> None:
    legs = {"exchange": 18.0}
    stands = [
        receives(0, 1, Message.GRADIENT),
        stand(1, SYNC, legs=legs),
        receives(2, 3, Message.GRADIENT),
        stand(3, SYNC, legs=legs),
    ]
    hang = hang_of(stands)
    assert hang is not None
    assert (hang.cause, hang.ranks) == (Cause.LINK, (1, 3))
    assert "the sum of stage 1 came through between n0 and n1" in hang_text(hang, stands)


def test_ranks_that_have_not_come_to_a_round_are_told() -> None:
    stands = [stand(rank, "", talk=Talk.MEETING) for rank in (0, 1, 3)]
    hang = hang_of(stands)
    assert hang is not None
    assert (hang.cause, hang.ranks) == (Cause.MEETING, (2,))


def test_a_rank_that_still_makes_the_users_model_is_the_story_of_a_meeting() -> None:
    stands = [
        stand(0, "", talk=Talk.MEETING, threads=thread(OURS)),
        stand(1, "", talk=Talk.MEETING, threads=thread(OURS, USERS)),
    ]
    hang = hang_of(stands)
    assert hang is not None
    assert (hang.cause, hang.ranks, hang.place) == (Cause.CODE, (1,), USERS)


def test_a_word_of_the_bundle_waits_for_its_other_ranks() -> None:
    stands = [stand(0, "checkpoint", talk=Talk.BUNDLE), stand(1, "checkpoint", threads=())]
    hang = hang_of(stands)
    assert hang is not None
    assert (hang.cause, hang.ranks, hang.waiting) == (Cause.CHECKPOINT, (1,), (0,))


def test_nobody_stands_nobody_is_told() -> None:
    assert hang_of([]) is None
    assert not is_hang([stand(0, "forward", age_s=15.9)])
    assert is_hang([stand(0, "forward", age_s=16.0)])
    assert is_hang([stand(0, "forward", age_s=1.0, by="agent")])


def test_each_rank_has_a_line() -> None:
    lines = list(standing_lines([receives(1, 0), stand(3, SYNC, legs={"exchange": 3.0})]))
    assert lines[0].endswith(
        "stage 1 of bundle 0) waits for the activation of micro-batch 3 from rank 0 for 18 s"
    )
    assert lines[1].endswith("waits for the sum of stage 1 (exchange) for 18 s")
