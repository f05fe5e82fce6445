"""Is the first node still there?"""

from __future__ import annotations

import errno
import socket

import pytest

from bundlerun.slurm.watch.lookout import LOSS_S, NEVER_S, PERIOD_S, Lookout, answers


class World:
    """Time, and who answers."""

    def __init__(self, *living: str) -> None:
        self.now = 0.0
        self.living = set(living)
        self.asked = 0
        self.beats = ""

    def probe(self, address: str, port: int) -> bool:
        self.asked += 1
        return address in self.living

    def lookout(self, *others: str) -> Lookout:
        return Lookout(
            first="a",
            others=others,
            port=1,
            pulse=lambda: self.beats and f"{self.beats} {self.now // 1}",
            probe=self.probe,
            clock=lambda: self.now,
        )

    def watch(self, lookout: Lookout, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            lookout.look()
            self.now += PERIOD_S / 4


def test_a_node_that_answers_is_not_lost() -> None:
    world = World("a", "c")
    lookout = world.lookout("c")
    world.watch(lookout, 60)
    assert not lookout.is_silent
    assert not lookout.is_lost
    assert world.asked <= 60 / PERIOD_S + 1


def once_answered(world: World, *others: str) -> Lookout:
    """The lookout after the first node has been seen, and fallen silent."""
    lookout = world.lookout(*others)
    world.living.add("a")
    world.watch(lookout, 2 * PERIOD_S)
    world.living.remove("a")
    return lookout


def test_silence_that_is_short_is_none() -> None:
    world = World("c")
    lookout = once_answered(world, "c")
    world.watch(lookout, LOSS_S - PERIOD_S)
    assert lookout.is_silent
    world.living.add("a")
    world.watch(lookout, 60)
    assert not lookout.is_silent
    assert not lookout.is_lost


def test_silence_that_lasts_is_a_loss() -> None:
    world = World("c")
    lookout = once_answered(world, "b", "c")
    world.watch(lookout, LOSS_S + 2 * PERIOD_S)
    assert lookout.is_lost


def test_who_hears_nobody_is_cut_off_itself() -> None:
    world = World()
    lookout = once_answered(world, "b", "c")
    world.watch(lookout, 60)
    assert lookout.is_silent
    assert not lookout.is_lost
    world.living.add("c")
    world.watch(lookout, 2 * PERIOD_S)
    assert lookout.is_lost


def test_the_only_other_node_decides_alone() -> None:
    world = World()
    lookout = once_answered(world)
    world.watch(lookout, LOSS_S + 2 * PERIOD_S)
    assert lookout.is_lost


def test_a_pulse_in_the_run_folder_is_life() -> None:
    world = World("c")
    world.beats = "beat"
    lookout = once_answered(world, "c")
    world.watch(lookout, 60)
    assert not lookout.is_lost
    world.beats = ""
    world.watch(lookout, LOSS_S + 3 * PERIOD_S)
    assert lookout.is_lost


def test_who_never_answered_is_given_more_time() -> None:
    world = World("c")
    lookout = world.lookout("c")
    world.watch(lookout, NEVER_S - PERIOD_S)
    assert not lookout.is_lost
    world.watch(lookout, 3 * PERIOD_S)
    assert lookout.is_lost


def test_a_machine_that_refuses_lives() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert answers("127.0.0.1", port)  # nobody listens
        probe.listen()
        assert answers("127.0.0.1", port)


@pytest.mark.parametrize("error", [TimeoutError(), OSError(errno.EHOSTUNREACH, "no route")])
def test_an_address_without_a_machine_is_silent(
    error: OSError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> socket.socket:
        raise error

    monkeypatch.setattr(socket, "create_connection", fail)
    assert not answers("10.0.0.1", 9)
