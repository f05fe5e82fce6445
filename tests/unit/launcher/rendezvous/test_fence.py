from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bundlerun.launcher.rendezvous.fence import Fence
from bundlerun.launcher.rendezvous.protocol.coordinator import TryClaim
from bundlerun.launcher.rendezvous.protocol.messages import Closed, Round, Seat

ENDED = Closed(reason="all done", is_success=True)


def round_(term: int, number: int) -> Round:
    seats = (Seat(name="a", incarnation="1", address="", num_workers=1),)
    return Round(term=term, number=number, seats=seats, is_fenced=True)


def wish(term: int, after: int, *void: tuple[int, int]) -> TryClaim:
    return TryClaim(after=after, round=round_(term, after + 1), void=frozenset(void))


def never(seconds: float) -> None:
    raise AssertionError("it waits")


def test_of_two_that_want_a_number_one_gets_it(tmp_path: Path) -> None:
    one, other = Fence(tmp_path / "job"), Fence(tmp_path / "job", 1)
    assert one.claim(wish(3, 4), watch_s=1, sleep=never).number == 5
    lost = other.claim(wish(7, 4), watch_s=1, sleep=never)
    assert (lost.number, [claim.id for claim in lost.others]) == (0, [(3, 5)])
    assert other.claim(wish(7, 4, (3, 5)), watch_s=1, sleep=never).number == 6
    assert other.has(round_(3, 5))
    assert not other.has(round_(7, 5))
    assert sorted(p.name for p in (tmp_path / "job").iterdir()) == [
        "pulse-0.json",
        "pulse-1.json",
        "round-000005.json",
        "round-000006.json",
    ]


def watching(act: Callable[[], object]) -> Callable[[float], None]:
    def sleep(seconds: float) -> None:
        act()

    return sleep


def test_claims_of_an_earlier_job_count_only_while_its_pulse_beats(tmp_path: Path) -> None:
    one, other = Fence(tmp_path), Fence(tmp_path, 1)
    assert one.claim(wish(0, 0), watch_s=1, sleep=never).number == 1
    assert other.claim(wish(1, 0), watch_s=1, sleep=watching(one.beat)).others
    assert other.claim(wish(1, 0), watch_s=1, sleep=watching(int)).number == 2


def test_a_coordinator_that_wakes_in_the_very_moment_of_a_claim_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = Fence(tmp_path), Fence(tmp_path, 1)
    assert one.claim(wish(0, 0), watch_s=1, sleep=never).number == 1
    create = other._create

    def wakes_just_before(number: int, made: Round) -> bool:
        one.beat()
        assert [claim.id for claim in one.claims()] == [(0, 1)]  # it sees nobody and goes on
        return create(number, made)

    monkeypatch.setattr(other, "_create", wakes_just_before)
    assert other.claim(wish(1, 0), watch_s=0, sleep=never).others
    assert [claim.id for claim in one.claims()] == [(0, 1)]


def test_nodes_that_only_heard_of_a_round_need_its_claim_and_all_behind_it(tmp_path: Path) -> None:
    one, other = Fence(tmp_path), Fence(tmp_path, 1)
    for number in (1, 2, 3):
        assert one.claim(wish(0, number - 1), watch_s=1, sleep=never).number == number
    heard = TryClaim(after=1, round=round_(1, 4), void=frozenset(), seen=2)
    others = other.claim(heard, watch_s=1, sleep=never).others
    assert [(claim.id, claim.is_fenced) for claim in others] == [((0, 2), True), ((0, 3), True)]
    passed = replace(heard, void=frozenset(claim.id for claim in others))
    assert other.claim(passed, watch_s=1, sleep=never).number == 4
    unknown = replace(heard, after=8, seen=9)
    assert "lacks round 9" in other.claim(unknown, watch_s=1, sleep=never).error


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = Fence(tmp_path / "file").claim(wish(0, 0), watch_s=1, sleep=never)
    assert done.error.startswith(f"the fence folder '{tmp_path / 'file'}': ")
    assert not Fence(tmp_path / "nowhere").has(round_(0, 1))


def test_a_half_that_was_cut_off_while_the_job_ended_hears_of_it(tmp_path: Path) -> None:
    one, other = Fence(tmp_path / "job"), Fence(tmp_path / "job", 1)
    one.claim(wish(0, 0), watch_s=1, sleep=never)
    one.close(ENDED)
    assert [file.name for file in (tmp_path / "job").iterdir()] == ["over.json"]
    assert other.over() == ENDED
    assert other.claim(wish(4, 1), watch_s=1, sleep=never).over == ENDED


def test_another_job_begins_in_the_folder_of_one_that_is_over(tmp_path: Path) -> None:
    fence = Fence(tmp_path)
    fence.claim(wish(0, 0), watch_s=1, sleep=never)
    fence.close(ENDED)
    assert fence.claim(wish(4, 0), watch_s=1, sleep=never).number == 1
    assert fence.over() is None


def test_terms_grow_with_the_claims(tmp_path: Path) -> None:
    one, other = Fence(tmp_path), Fence(tmp_path, 1)
    one.claim(wish(7, 0), watch_s=1, sleep=never)
    lower = other.claim(wish(5, 0), watch_s=1, sleep=never)
    assert (lower.number, lower.highest_term) == (0, 7)
    assert other.claim(wish(8, 0), watch_s=0.1, sleep=watching(int)).number == 2
