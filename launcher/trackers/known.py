"""Which trackers there are: those that come with bundlerun, and entry points of other packages."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.trackers.interface import Tracker, TrackerRun

GROUP = "bundlerun.launcher.trackers"
"""Of entry points: a name, and a callable that opens a `TrackerRun`."""


@dataclass(frozen=True, slots=True)
class Known:
    """A tracker that comes with bundlerun.

    Args:
        package: that has to be there; by its name in imports.
        opener: module of this room and name in it.
    """

    package: str
    opener: str


TRACKERS: Mapping[str, Known] = {
    "tensorboard": Known("tensorboard", "tensorboard_files:TensorBoardFiles"),
    "wandb": Known("wandb", "wandb_run:WandbRun"),
    "mlflow": Known("mlflow", "mlflow_run:MlflowRun"),
    "trackio": Known("trackio", "trackio_run:TrackioRun"),
}
"""By name, which is also that of the extra."""


def check_trackers(names: Iterable[str], option: str = "--tracker") -> None:
    """Raises ConfigError for a tracker that nobody has, or whose package is missing."""
    for name in names:
        if name in TRACKERS:
            if importlib.util.find_spec(TRACKERS[name].package) is None:
                raise ConfigError(
                    f"{option} {name} needs the package {TRACKERS[name].package}, which is not "
                    f"installed; pip install 'bundlerun[{name}]'"
                )
        elif name not in _others():
            valid = [*TRACKERS, *_others()]
            raise ConfigError(
                f"{option} {name!r} is no tracker; {nearest(name, valid)} (a package adds one "
                f"with the entry point {GROUP})"
            )


def opener_of(name: str) -> Callable[[TrackerRun], Tracker]:
    """What opens a run of the tracker; its package is imported now.

    Raises:
        Exception: it cannot be.
    """
    if name in TRACKERS:
        module, _, attribute = TRACKERS[name].opener.partition(":")
        found = importlib.import_module(f"bundlerun.launcher.trackers.{module}")
        return getattr(found, attribute)  # type: ignore[no-any-return]
    return _others()[name].load()  # type: ignore[no-any-return]


def _others() -> dict[str, metadata.EntryPoint]:
    return {point.name: point for point in metadata.entry_points(group=GROUP)}
