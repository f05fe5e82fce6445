from importlib import metadata

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.trackers.known import TRACKERS, check_trackers, opener_of


def test_a_tracker_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    for name in TRACKERS:
        with pytest.raises(ConfigError, match=rf"--tracker {name} .*bundlerun\[{name}\]"):
            check_trackers([name])
    check_trackers([])


def test_an_unknown_tracker_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="--tracker 'wandbb' is no tracker; nearest: wandb"):
        check_trackers(["wandbb"])


def test_another_package_adds_one_by_an_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("mine", "builtins:dict", "bundlerun.launcher.trackers")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    check_trackers(["mine"])
    assert opener_of("mine") is dict
