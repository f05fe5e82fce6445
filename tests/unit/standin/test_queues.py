"""Streams are done as late as can be, in their own order, and after what they wait for."""

from __future__ import annotations

import threading

import pytest

from tests.standin.queues import Clock, Engine, Queue


def free(index: int, clock: Clock) -> None:
    """No check."""


class Bench:
    """Two streams, and what was done."""

    def __init__(self, seed: int | None = None) -> None:
        self.engine = Engine(seed)
        self.one, self.other = self.engine.queue("one"), self.engine.queue("other")
        self.done: list[str] = []

    def give(self, queue: Queue, name: str) -> int:
        return self.engine.give(queue, lambda: self.done.append(name), free)


def test_nothing_is_done_before_somebody_waits() -> None:
    bench = Bench()
    bench.give(bench.one, "a")
    point = bench.engine.point(bench.one)
    bench.give(bench.one, "b")
    bench.give(bench.other, "c")
    assert not bench.done
    assert not bench.engine.has_reached(point)
    bench.engine.reach(point)
    assert bench.done == ["a"]
    assert bench.engine.has_reached(point)
    bench.engine.reach_all()
    assert bench.done == ["a", "b", "c"]


def test_a_stream_that_waits_for_another_one_lets_it_go_first_and_no_further() -> None:
    bench = Bench()
    bench.give(bench.one, "a")
    bench.engine.let_wait(bench.other, bench.engine.point(bench.one))
    bench.give(bench.one, "b")
    bench.give(bench.other, "c")
    bench.engine.reach(bench.engine.point(bench.other))
    assert bench.done == ["a", "c"]


def test_a_clock_tells_what_comes_before() -> None:
    bench = Bench()
    bench.give(bench.one, "a")
    clocks: list[Clock] = []
    bench.engine.give(bench.other, lambda: None, lambda index, clock: clocks.append(dict(clock)))
    bench.engine.let_wait(bench.other, bench.engine.point(bench.one))
    bench.engine.give(bench.other, lambda: None, lambda index, clock: clocks.append(dict(clock)))
    before, after = clocks
    assert bench.one.number not in before
    assert after[bench.one.number] == 1


def test_what_the_process_has_waited_for_comes_before_all_that_it_gives_later() -> None:
    bench = Bench()
    bench.give(bench.one, "a")
    bench.engine.reach(bench.engine.point(bench.one))
    clocks: list[Clock] = []
    bench.engine.give(bench.other, lambda: None, lambda index, clock: clocks.append(dict(clock)))
    assert clocks[0][bench.one.number] == 1


def test_a_failure_is_told_to_who_waits_and_nothing_is_done_after_it() -> None:
    bench = Bench()

    def fail() -> None:
        raise ValueError("broken")

    bench.engine.give(bench.one, fail, free)
    bench.give(bench.one, "a")
    with pytest.raises(RuntimeError, match="broken"):
        bench.engine.reach_all()
    assert not bench.done


def test_threads_that_wait_for_one_stream_do_everything_once_and_in_order() -> None:
    bench = Bench()
    for number in range(500):
        bench.give(bench.one, str(number))
    point = bench.engine.point(bench.one)
    threads = [threading.Thread(target=bench.engine.reach, args=(point,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert bench.done == [str(number) for number in range(500)]


def test_a_seed_lets_streams_take_turns_and_keeps_their_order() -> None:
    orders = set()
    for seed in range(5):
        bench = Bench(seed)
        for number in range(20):
            bench.give(bench.one, f"a{number}")
            bench.give(bench.other, f"b{number}")
        assert len(bench.done) > 0
        bench.engine.reach_all()
        orders.add(tuple(bench.done))
        for name in "ab":
            own = [each for each in bench.done if each.startswith(name)]
            assert own == [f"{name}{number}" for number in range(20)]
    assert len(orders) == 5


def test_what_a_stream_knows_of_others_is_what_it_knew_at_that_point() -> None:
    bench = Bench()
    for count in (3, 7):
        bench.engine.give(bench.one, lambda count=count: bench.one.learn({"p": count}), free)
    bench.engine.let_wait(bench.other, bench.engine.point(bench.one))
    bench.give(bench.other, "a")
    bench.engine.reach_all()
    assert [bench.one.knows(n) for n in range(3)] == [{}, {"p": 3}, {"p": 7}]
    assert bench.other.knows(1) == {"p": 7}
