"""A program of ours that is sent a signal at one moment of its life.

python -m tests.e2e.signal_actor MOMENT TARGET SIGNAL FOLDER PROGRAM WORD...

MOMENT: a place of `benchmarks.faults.places`, or one of `EARLY` and `MORE`;
"A, then B" kills a rank with SIGKILL at A, and means B behind that. TARGET: agent, group, server,
rank. PROGRAM: bundlerun or train. In FOLDER the file "sent" says that it was.
"""

from __future__ import annotations

import functools
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.faults.inject import Injector
from benchmarks.faults.places import RANK_PLACES, wrap_all

EARLY = {"before torch": "torch", "torch comes": "torch.nn"}
"""The module that is about to be imported."""
MORE = {
    "rank begins": "bundlerun.launcher.agent.entry:_main",
    "validation": "bundlerun.workers.trainer:Trainer.evaluate",
    "no node comes": "bundlerun.launcher.rendezvous.handler:BundleRendezvousHandler._check_open",
}
"""The function that is about to be called."""
STEP = 2
"""Finished steps from which on a place of a rank counts."""


class Moment(Injector):
    """Sends the signal as the first process comes by."""

    def __init__(self, moment: str, target: str, number: signal.Signals, folder: Path) -> None:
        before, _, moment = moment.rpartition(", then ")
        self.step = 0
        self._moment = moment
        self._before = before
        self._target = target
        self._number = number
        self._folder = folder
        self._agent = os.getpid()

    def pass_by(self, place: str) -> None:
        """Sends it where it is time."""
        is_in_step = place in RANK_PLACES and place not in ("meeting", "exit")
        if is_in_step and self.step < STEP:
            return
        if place == self._before and self._takes("killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self._before and not (self._folder / "killed").exists():
            return
        if place == self._moment and self._takes("sent"):
            self.send()

    def _takes(self, ticket: str) -> bool:
        try:
            (self._folder / ticket).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def send(self) -> None:
        match self._target:
            case "agent":
                os.kill(self._agent, self._number)
            case "group":
                os.killpg(os.getpgid(self._agent), self._number)
            case "server":
                os.kill(os.getppid(), self._number)
            case "rank":
                os.kill(os.getpid(), self._number)


class Import:
    """Comes by as a module is about to be imported."""

    def __init__(self, moment: Moment) -> None:
        self._moment = moment

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> None:
        for place, module in EARLY.items():
            if module == name:
                self._moment.pass_by(place)


def wrap(place: str, where: str, moment: Moment) -> None:
    module, _, dotted = where.partition(":")
    owner: Any = importlib.import_module(module)
    *path, name = dotted.split(".")
    for step in path:
        owner = getattr(owner, step)
    function = getattr(owner, name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        moment.pass_by(place)
        return function(*args, **kwargs)

    setattr(owner, name, call)


def main(argv: Sequence[str]) -> int:
    name, target, number, folder, program, *words = argv
    moment = Moment(name, target, signal.Signals[number], Path(folder))
    if name in EARLY:
        sys.meta_path.insert(0, Import(moment))  # type: ignore[arg-type] # it finds nothing
    else:
        wrap_all(moment)
        for place, where in MORE.items():
            wrap(place, where, moment)
    if program == "bundlerun":
        return importlib.import_module("bundlerun.launcher.cli").main(words)
    return importlib.import_module("bundlerun.workers.train").main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
