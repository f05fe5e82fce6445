from __future__ import annotations

from pathlib import Path

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.why.sheet import Message, Seat, Sheet, Talk
from bundlerun.launcher.why.stands import read_stands
from bundlerun.workers.rank.life.standing import Standing, note_scheduled
from bundlerun.workers.rank.meters import Meters

LIMIT_S = 20.0


class Clock:
    now = 1e9

    def __call__(self) -> float:
        return self.now


def seated(tmp_path: Path, bundle: int = 0) -> tuple[Standing, Meters, Clock, RunPaths]:
    sheet, clock = Sheet.private(), Clock()
    seat = Seat(
        rank=1, world_size=2, node=0, bundle=bundle, stage=1, replica=0, limit_s=LIMIT_S, token=5
    )
    sheet.enter(seat, clock.now)
    sheet.talks(Talk.NONE)
    standing = Standing(sheet, "n0", 1, clock=clock)
    standing.tell_run_dir(tmp_path)
    return standing, Meters(clock, sheet=sheet), clock, RunPaths(tmp_path)


def test_a_rank_that_stands_says_so_before_its_wait_runs_out_and_takes_it_back(
    tmp_path: Path,
) -> None:
    standing, meters, clock, paths = seated(tmp_path)
    meters.sheet.awaits(Message.ACTIVATION, 0, 7)
    with meters.phase("receive"):
        clock.now += 15.9
        standing.look()
        assert paths.all_stands() == []
        clock.now += 0.2
        standing.look()
        standing.end()  # has it written
        (stand,) = read_stands(paths.all_stands(), token=5)
        assert (stand.rank, stand.phase, stand.peer, stand.microbatch) == (1, "receive", 0, 7)
        assert stand.by == "rank"
        assert read_stands(paths.all_stands(), token=6) == []
    standing.look()
    assert paths.all_stands() == []


def test_a_rank_that_others_end_says_where_it_stood_if_it_did(tmp_path: Path) -> None:
    standing, meters, clock, paths = seated(tmp_path)
    with meters.phase("forward"):
        clock.now += 9.9
        standing.end()
        assert paths.all_stands() == []
        clock.now += 0.2
        standing.end()
        assert [stand.phase for stand in read_stands(paths.all_stands())] == ["forward"]


def test_spare_ranks_and_those_without_a_place_wait_for_as_long_as_they_like(
    tmp_path: Path,
) -> None:
    spare, _, clock, paths = seated(tmp_path, bundle=-1)
    nobody = Standing(Sheet.private(), "n0", 0, clock=clock)
    nobody.tell_run_dir(tmp_path)
    clock.now += 1000.0
    for each in (spare, nobody):
        each.look()
        each.end()
    assert paths.all_stands() == []


def test_the_kernel_says_how_long_a_rank_had_a_core() -> None:
    sheet = Sheet.private()
    note_scheduled(sheet)
    assert sheet.cpu_s > 0
    assert sheet.run_delay_s >= 0
