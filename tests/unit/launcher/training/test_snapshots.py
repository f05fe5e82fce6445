"""Options of copies in memory that do not go together."""

from __future__ import annotations

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"snapshot": "off", "snapshot_copies": 2}, "--snapshot-copies 2 asks other nodes"),
        ({"snapshot": "off", "copy_share": 0.2}, "with --snapshot off there are none"),
        ({"snapshot_copies": 1, "copy_share": 0.2}, "with --snapshot-copies 1 there are none"),
        ({"snapshot_copies": -1}, "--snapshot-copies -1"),
        ({"copy_share": 0.0}, "--copy-share 0.0 must be above 0"),
        ({"copy_share": 1.5}, "--copy-share 1.5 is more than the whole link"),
    ],
)
def test_what_contradicts_itself_is_refused(options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "num_copies"),
    [
        ({}, 2),
        ({"snapshot_copies": 1}, 1),
        ({"snapshot_copies": 3, "copy_share": 0.2}, 3),
        ({"snapshot": "off"}, 0),
        ({"snapshot": "off", "snapshot_copies": 1}, 0),
    ],
)
def test_how_many_nodes_have_each_stage(options: dict[str, object], num_copies: int) -> None:
    assert TrainConfig(**options).num_copies == num_copies  # type: ignore[arg-type]
