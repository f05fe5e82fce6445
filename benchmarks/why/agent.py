"""`bundlerun` with places of its own for a cause: where something is written or sent."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.why.planted import Plant
from bundlerun.launcher.cli import main

_PLACES = {
    "checkpoint": ("bundlerun.workers.state.checkpoint", "", "write_tensors"),
    "message": ("bundlerun.workers.pipeline.transports", "GlooSender", "send"),
    "sum": ("bundlerun.workers.rank.comm", "Group", "send"),
    "snapshot": ("bundlerun.workers.snapshot.slot", "Slot", "seal"),
}


def plant_all() -> None:
    """Wraps the places in this process; its forks inherit that."""
    for place, (module, owner, function) in _PLACES.items():
        where: Any = importlib.import_module(module)
        where = getattr(where, owner) if owner else where
        setattr(where, function, _planted(getattr(where, function), place))


def _planted(function: Callable[..., Any], place: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        # Made anew: the environment of a rank is known once it is one.
        is_dropped = Plant().pass_by(place)
        # As where nothing waits for it: a list of handles.
        return [] if is_dropped else function(*args, **kwargs)

    return call


if __name__ == "__main__":
    plant_all()
    sys.exit(main())
