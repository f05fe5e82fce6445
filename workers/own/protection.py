"""`Protection`: how often a user's own loop is kept, and where."""

from __future__ import annotations

from dataclasses import dataclass

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Protection:
    """How a loop is protected.

    Args:
        snapshot_steps: steps between two copies in memory; 0: as few as cost less than 1 %.
        snapshot_dir: folder of each node for them; empty: shared memory.
        checkpoint_steps: steps between two checkpoints on disk; 0: only where the loop ends.
        keep: newest checkpoints that stay.
        timeout_s: longest wait for another rank, seconds.
    """

    snapshot_steps: int = 0
    snapshot_dir: str = ""
    checkpoint_steps: int = 0
    keep: int = 3
    timeout_s: float = 300.0

    def config(self, num_ranks: int, run_dir: str) -> TrainConfig:
        """The same as options of a run.

        Raises:
            ConfigError: a value is out of range.
        """
        return TrainConfig(
            shape=Shape((num_ranks,)),
            batch_size=num_ranks,
            microbatch_size=1,
            transport="cpu",
            run_dir=run_dir,
            snapshot_steps=self.snapshot_steps,
            snapshot_dir=self.snapshot_dir,
            checkpoint_steps=self.checkpoint_steps,
            keep=self.keep,
            timeout_s=self.timeout_s,
        )
