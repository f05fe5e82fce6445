import json
import os
import random
from functools import partial
from pathlib import Path

import pytest

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.follower import Follower, all_rows
from bundlerun.workers.report.metrics import MetricsWriter
from tests.unit.launcher.trackers.stand_ins import Store, dies_at

KINDS = {
    "takes steps back": lambda: Store(can_take_back=True),
    "keeps all": lambda: Store(can_take_back=False),
    "writes late": lambda: Store(can_take_back=False, is_late=True),
}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes die here, no machine."""
    monkeypatch.setattr("os.fsync", lambda _: None)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "a run")


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest) -> Store:
    return KINDS[request.param]()


def write_steps(writer: MetricsWriter, first: int, last: int) -> None:
    for step in range(first, last):
        writer.write("step", step=step, loss=1 / (step + 1), seconds={"forward": 0.5})
        if (step + 1) % 5 == 0:
            writer.write("eval", step=step + 1, metrics={"top1": 0.5})
            writer.write("epoch", step=step + 1, epoch=step // 5, samples_per_s=3.5)


def expected(paths: RunPaths) -> list[tuple[str, int, float]]:
    return sorted((n, row.step, v) for row in all_rows(paths) for n, v in row.scalars.items())


def tell_all(paths: RunPaths, store: Store) -> None:
    follower = Follower(paths, "t", store.opened)
    while follower.step():
        pass
    follower.close()


def test_each_row_is_told_once(paths: RunPaths, store: Store) -> None:
    with MetricsWriter(paths) as writer:
        follower = Follower(paths, "t", store.opened)
        for step in range(12):
            write_steps(writer, step, step + 1)
            follower.step()
        writer.write("end")
    assert not follower.step()
    follower.close()

    assert store.shown() == expected(paths)
    assert ("step/loss", 11, 1 / 12) in store.shown()
    tell_all(paths, store)
    assert store.shown() == expected(paths)


def test_steps_that_are_done_again_are_there_once(paths: RunPaths, store: Store) -> None:
    with MetricsWriter(paths) as writer:
        write_steps(writer, 0, 12)
    tell_all(paths, store)
    with MetricsWriter(paths) as writer:
        writer.write("start")
        writer.forget(10, with_ends=False)
        write_steps(writer, 10, 13)
    tell_all(paths, store)

    assert store.shown() == expected(paths)
    assert len(store.replaced) == (0 if store.can_take_back else 1)


def test_the_end_of_an_epoch_stays_when_the_step_after_it_is_done_again(
    paths: RunPaths, store: Store
) -> None:
    # Both carry the number 10, the one as finished steps, the other as its own.
    with MetricsWriter(paths) as writer:
        write_steps(writer, 0, 10)
        tell_all(paths, store)
        write_steps(writer, 10, 12)
        tell_all(paths, store)
        writer.forget(10, with_ends=False)
        write_steps(writer, 10, 11)
    tell_all(paths, store)

    assert store.shown() == expected(paths)
    assert [step for name, step, _ in store.shown() if name == "eval/metrics/top1"] == [5, 10]


def test_steps_that_no_snapshot_has_wait_where_they_could_not_be_taken_back(
    paths: RunPaths, store: Store
) -> None:
    with MetricsWriter(paths) as writer:
        paths.config.write_text('{"snapshot": "on"}')
        follower = Follower(paths, "t", store.opened)
        for step in range(7):
            writer.write("step", step=step, loss=0.5, **({"kept": True} if step == 3 else {}))
        while follower.step():
            pass
        assert follower.num_told == (7 if store.can_take_back else 4)
        follower.close()
        # A death: the snapshot of step 3 is all there is.
        writer.forget(4, with_ends=False)
        for step in range(4, 6):
            writer.write("step", step=step, loss=0.5)
    follower = Follower(paths, "t", store.opened, is_all=True)
    while follower.step():
        pass
    follower.close()
    assert store.shown() == expected(paths)
    assert store.replaced == []


def test_numbers_that_are_not_finite_are_told(paths: RunPaths) -> None:
    store = Store(can_take_back=True)
    with MetricsWriter(paths) as writer:
        writer.write("step", step=0, loss=float("nan"), norm=float("inf"), text="no number")
    tell_all(paths, store)
    names = [name for name, *_ in store.shown()]
    assert names == ["step/loss", "step/norm"]


def test_a_line_that_is_half_written_waits(paths: RunPaths) -> None:
    store = Store(can_take_back=True)
    with MetricsWriter(paths) as writer:
        write_steps(writer, 0, 1)
    whole = paths.metrics.read_bytes()
    line = json.dumps({"kind": "step", "step": 1, "loss": 0.25}).encode() + b"\n"
    paths.metrics.write_bytes(whole + line[:9])
    follower = Follower(paths, "t", store.opened)
    while follower.step():
        pass
    assert [step for _, step, _ in store.shown()] == [0, 0]
    paths.metrics.write_bytes(whole + line)
    assert follower.step()
    follower.close()
    assert ("step/loss", 1, 0.25) in store.shown()


def test_a_tracker_that_fails_is_opened_again_and_has_all(paths: RunPaths, store: Store) -> None:
    with MetricsWriter(paths) as writer:
        write_steps(writer, 0, 7)
    left = 3

    def opened(run: object) -> object:
        nonlocal left
        left -= 1
        if left > 0:
            raise ConnectionError("no route")
        return store.opened(run)  # type: ignore[arg-type]

    follower = Follower(paths, "t", opened)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ConnectionError):
            follower.step()
    assert follower.step()
    follower.close()
    assert store.shown() == expected(paths)


@pytest.mark.parametrize("kind", KINDS)
def test_it_may_die_at_every_line(tmp_path: Path, kind: str) -> None:
    """One that finds steps done again and new ones is cut off before each line that it runs.

    Each fourth line of each kind, and other ones of each, where no long tests are asked for.
    """
    stride = 1 if os.environ.get("BUNDLERUN_TEST_SLOW") else 4
    died, line = True, list(KINDS).index(kind) % stride
    while died:
        paths, store = RunPaths(tmp_path / str(line)), KINDS[kind]()
        with MetricsWriter(paths) as writer:
            write_steps(writer, 0, 6)
            tell_all(paths, store)
            writer.write("start")
            writer.forget(4, with_ends=line % 2 == 0)
            write_steps(writer, 4, 6)
        follower = partial(tell_all, paths, store)
        died, _ = dies_at(line, follower)
        follower()
        assert store.shown() == expected(paths), line
        line += stride
    assert line > 150


@pytest.mark.parametrize("kind", KINDS)
def test_after_200_faults_each_step_is_there_once(tmp_path: Path, kind: str) -> None:
    paths, store = RunPaths(tmp_path / "a run"), KINDS[kind]()
    chance = random.Random(kind)
    writer = MetricsWriter(paths)
    step, faults = 0, 0
    follower: Follower | None = None

    def look() -> bool:
        # It may be an old follower that sees a cut, or a new one.
        return (follower or Follower(paths, "t", store.opened)).step()

    while faults < 200:
        count = chance.randrange(1, 8)
        write_steps(writer, step, step + count)
        step += count
        if chance.random() < 0.3:  # the rank dies: no state, or that of a checkpoint
            writer.write("start")
            step = max(0, step - chance.randrange(0, 12))
            writer.forget(step, with_ends=chance.random() < 0.5)
        died, _ = dies_at(chance.randrange(300), look)
        faults += died
        follower = None if died or chance.random() < 0.3 else Follower(paths, "t", store.opened)
    writer.close()
    tell_all(paths, store)
    assert store.shown() == expected(paths)
