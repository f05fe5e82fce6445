"""Where everything of one run lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunPaths:
    """The files and folders under one run folder; no other place builds such a path."""

    root: Path

    @property
    def config(self) -> Path:
        """The training configuration, JSON."""
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        """The history of the run, JSON Lines."""
        return self.root / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What the last finished run came to, JSON."""
        return self.root / "summary.json"

    @property
    def checkpoints(self) -> Path:
        """One folder per checkpoint."""
        return self.root / "checkpoints"

    def sync_choice(self, stage: int) -> Path:
        """How the gradients of a stage meet, as `--sync auto` has measured, JSON."""
        return self.root / "sync" / f"stage-{stage}.json"

    @property
    def tensorboard(self) -> Path:
        """Event files for TensorBoard."""
        return self.root / "tensorboard"

    @property
    def logs(self) -> Path:
        """One folder per node."""
        return self.root / "logs"

    def node_logs(self, node_name: str) -> Path:
        """The agent's and the workers' logs of one node."""
        return self.logs / node_name

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint taken after `step` finished steps."""
        return self.checkpoints / f"step-{step:09d}"
