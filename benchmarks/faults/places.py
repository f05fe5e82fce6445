"""The places where a fault may strike: names, and what of the product is wrapped for each.

A place is a moment of one process: just before a function runs ("before"), or just after it has,
before its caller continues ("after").
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.faults.inject import Injector


@dataclass(frozen=True, slots=True)
class Spot:
    """A function of the product, and on which side of it the place is.

    owner: a module, or a class as `module:Class`. only: first argument after self that counts.
    """

    owner: str
    function: str
    side: Literal["before", "after"]
    only: str = ""


RANK_PLACES: Mapping[str, Spot] = {
    # one step
    "forward": Spot("bundlerun.workers.pipeline.bundle:Bundle", "_forward", "before"),
    "backward": Spot("bundlerun.workers.pipeline.bundle:Bundle", "_backward", "before"),
    "sync wait": Spot("bundlerun.workers.sync.legs:Chain", "take", "before"),
    "optimizer": Spot(
        "bundlerun.workers.model.norms.batchnorm:StatisticsPool", "apply", "after"
    ),  # half of the update
    "step end": Spot("bundlerun.workers.rank.life.liveness:Liveness", "finished", "before"),
    # what outlives a rank
    "snapshot copy": Spot(
        "bundlerun.workers.snapshot.slot:Slot", "open", "after"
    ),  # blank, not yet written
    "snapshot seal": Spot("bundlerun.workers.snapshot.slot:Slot", "seal", "before"),
    "checkpoint write": Spot("bundlerun.workers.state.checkpoint", "write_tensors", "after"),
    "checkpoint commit": Spot("bundlerun.workers.state.checkpoint", "_move", "before"),
    "checkpoint prune": Spot("bundlerun.workers.state.checkpoint:Checkpoints", "prune", "before"),
    # a new start
    "meeting": Spot("bundlerun.workers.train", "join", "before"),
    "restore survey": Spot("bundlerun.workers.snapshot.restore:Restore", "_announce", "before"),
    "restore send": Spot("bundlerun.workers.snapshot.restore:Restore", "_send", "before"),
    "restore receive": Spot("bundlerun.workers.snapshot.restore:Restore", "_receive", "before"),
    "restore load": Spot("bundlerun.workers.run.trained:Trained", "load", "before"),
    "exit": Spot("bundlerun.workers.run.course:Run", "train_from", "after"),
}
LEG_PLACES = ("collect", "exchange", "distribute")
"""Each leg as it begins with a bucket, in a thread of its own."""
AGENT_PLACES: Mapping[str, Spot] = {
    "rendezvous want": Spot("bundlerun.launcher.rendezvous.node:Node", "want", "after"),
    "rendezvous host": Spot("bundlerun.launcher.rendezvous.rounds:Rounds", "open", "before"),
    "rendezvous accept": Spot(
        "bundlerun.launcher.rendezvous.protocol.member", "accept", "after"
    ),  # said to nobody
    "rendezvous enter": Spot("bundlerun.launcher.rendezvous.rounds:Rounds", "enter", "before"),
    "take-over": Spot(
        "bundlerun.launcher.run_folder.events:Events", "note", "after", only="coordinator: active"
    ),
}
NAMES = (*RANK_PLACES, *LEG_PLACES, *AGENT_PLACES)
JOIN_RANK_PLACES: Mapping[str, Spot] = {
    # those who go on in the next round
    "next round": Spot("bundlerun.workers.run.hand_over:Mover", "_prepare", "before"),
    "next groups": Spot("bundlerun.workers.run.hand_over", "check_same_model", "before"),
    "keep for next": Spot("bundlerun.workers.run.saving:Saving", "keep_for_next", "before"),
    "leave": Spot("bundlerun.workers.run.hand_over:Mover", "leave", "before"),
    "left": Spot("bundlerun.workers.run.hand_over:Mover", "leave", "after"),
    "pass on": Spot("bundlerun.workers.run.passing_on", "send_piece", "before"),
    "passed on": Spot("bundlerun.workers.run.passing_on", "send_piece", "after"),
    "first gate": Spot("bundlerun.workers.run.passing_on:FirstGate", "before_last", "before"),
    # those who join them
    "prepared": Spot("bundlerun.workers.run.hand_over:Joiner", "has_prepared", "before"),
    "wait for the others": Spot("bundlerun.workers.run.hand_over:Joiner", "wait", "after"),
    "take": Spot("bundlerun.workers.run.passing_on", "receive_piece", "before"),
    "taken": Spot("bundlerun.workers.run.passing_on:Passer", "take", "after"),
    # both
    "in the next round": Spot(
        "bundlerun.workers.rank.life.liveness:Liveness", "has_moved", "before"
    ),
}
JOIN_AGENT_PLACES: Mapping[str, Spot] = {
    "go on": Spot("bundlerun.launcher.rendezvous.rounds:Rounds", "_go_on_in", "before"),
    "have moved": Spot("bundlerun.launcher.rendezvous.node:Node", "moved", "before"),
}
"""Where a node joins ranks that go on in their processes; no fault of chance finds these."""


def wrap_all(injector: Injector) -> None:
    """Wraps every place in this process; its forks inherit that. Once per process."""
    places = {**RANK_PLACES, **AGENT_PLACES, **JOIN_RANK_PLACES, **JOIN_AGENT_PLACES}
    for name, spot in places.items():
        owner = _owner(spot.owner)
        # On the class or the module: instances that are made later have it, too.
        act = functools.partial(injector.pass_by, name)
        setattr(owner, spot.function, _wrapped(getattr(owner, spot.function), spot, act))
    # Legs are told apart by their action, which a name of a function does not show.
    _wrap_legs(injector)
    _follow_steps(injector)


def _owner(where: str) -> Any:
    module, _, name = where.partition(":")
    found = importlib.import_module(module)
    return getattr(found, name) if name else found


def _wrapped(function: Callable[..., Any], spot: Spot, act: Callable[[], None]) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        # args[0] is self.
        is_here = not spot.only or spot.only in args[1:2]
        if is_here and spot.side == "before":
            act()
        result = function(*args, **kwargs)
        if is_here and spot.side == "after":
            act()
        return result

    return call


class _WatchedAction:
    """A leg's action; its place comes before each begin."""

    def __init__(self, action: Any, injector: Injector) -> None:
        # All that a leg reads of its action, besides `begin`.
        self.phase = action.phase
        self._action = action
        self._injector = injector

    def begin(self, bucket: object) -> Any:
        self._injector.pass_by(self.phase)
        return self._action.begin(bucket)


def _wrap_legs(injector: Injector) -> None:
    legs = importlib.import_module("bundlerun.workers.sync.legs")
    make = legs.Leg.__init__

    def init(leg: Any, action: Any, *args: Any, **kwargs: Any) -> None:
        make(leg, _WatchedAction(action, injector), *args, **kwargs)

    legs.Leg.__init__ = init


def _follow_steps(injector: Injector) -> None:
    """Wrapped last, so outermost: the place "step end" is still in the step before."""
    life = importlib.import_module("bundlerun.workers.rank.life.liveness").Liveness
    finished = life.finished

    def follow(self: Any, step: int) -> None:
        finished(self, step)
        injector.step = step

    life.finished = follow
    run = importlib.import_module("bundlerun.workers.run.course").Run
    train_from = run.train_from

    def begin(self: Any, progress: Any) -> Any:
        # A rank that resumes begins at this step, not at 0: faults wait for steps of the run.
        injector.step = progress.step
        return train_from(self, progress)

    run.train_from = begin
