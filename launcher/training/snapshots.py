"""Copies of the state in memory: whether, where, how often, and on how many nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bundlerun.launcher.choices import OnOff
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.bounds import at_least, finite_above_0
from bundlerun.launcher.options.declared import option
from bundlerun.launcher.training.images import ImageConfig

_SNAPSHOT = "snapshot"
_BY_DEFAULT = 2
"""Nodes that have each stage, where there are as many."""


@dataclass(frozen=True, slots=True, kw_only=True, init=False, repr=False, eq=False)
class SnapshotConfig(ImageConfig):
    """What is kept of the state beside checkpoints.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    snapshot: OnOff = option(
        "on",
        "after each step, copy the state to the memory of the nodes, for fast restarts",
        group=_SNAPSHOT,
        choices=get_args(OnOff),
    )
    snapshot_dir: str = option(
        "",
        "folder of each node for the snapshots (default: /dev/shm, or the temporary folder if "
        "that is too small)",
        group=_SNAPSHOT,
        per_node=True,
    )
    snapshot_steps: int = option(
        0,
        "steps between snapshots (0: automatic, so that they cost less than 1 % of the time)",
        group=_SNAPSHOT,
        parse=int,
    )
    snapshot_copies: int = option(
        0,
        "nodes that have each stage in memory, where there are as many; a stage that fewer run "
        "is copied to others behind the next step (0: 2 nodes; 1: no copies)",
        group=_SNAPSHOT,
        parse=int,
    )
    copy_share: float = option(
        1.0,
        "share of the link to another node, as fast as it is found to be, that copies to it take "
        "at most",
        group=_SNAPSHOT,
        parse=float,
    )
    rack: str = option(
        "",
        "what this node shares with others that fail with it, such as a rack or a switch: copies "
        "of its stages go to nodes of another one (default: its switch, where Slurm tells, else "
        "the machine)",
        group=_SNAPSHOT,
        per_node=True,
    )

    def __post_init__(self) -> None:
        ImageConfig.__post_init__(self)  # not super(): slots make a class anew
        at_least(0, self, "snapshot_steps", "snapshot_copies")
        finite_above_0(self, "copy_share")
        if self.copy_share > 1:
            raise ConfigError(
                f"--copy-share {self.copy_share:g} is more than the whole link; give a share above "
                "0 and up to 1, such as 0.2"
            )
        if self.snapshot == "off" and self.snapshot_copies > 1:
            raise ConfigError(
                f"--snapshot-copies {self.snapshot_copies} asks other nodes for copies of "
                "snapshots, and with --snapshot off there are none; leave one of the two out"
            )
        if self.copy_share < 1 and (self.snapshot == "off" or self.snapshot_copies == 1):
            without = "--snapshot off" if self.snapshot == "off" else "--snapshot-copies 1"
            raise ConfigError(
                f"--copy-share {self.copy_share:g} is for copies of snapshots on other nodes, and "
                f"with {without} there are none; leave one of the two out"
            )

    @property
    def num_copies(self) -> int:
        """Nodes that are to have each stage in memory; 0: there are no snapshots."""
        return 0 if self.snapshot == "off" else self.snapshot_copies or _BY_DEFAULT
