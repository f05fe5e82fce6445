"""Pure: how the progress of a run reads, on the bar and in the lines of a log."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.run_folder.checkpoints import RAW

_MOST_TOLD = 8
"""Metrics in a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Where a run goes to, and how its numbers are called.

    Args:
        unit: what one sample is called, plural.
        shares: metrics that are shares of the samples, which are told in percent.
    """

    steps_per_epoch: int
    epochs: int
    max_steps: int
    unit: str
    shares: Collection[str] = ()

    @classmethod
    def of(
        cls, config: TrainConfig, steps_per_epoch: int, unit: str, shares: Collection[str] = ()
    ) -> Course:
        """That of a run."""
        return cls(
            steps_per_epoch=steps_per_epoch,
            epochs=config.epochs,
            max_steps=config.max_steps,
            unit=unit,
            shares=shares,
        )

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        steps = self.epochs * self.steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def steps_in(self, epoch: int) -> int:
        """Steps that the epoch has before it, or the run, is over."""
        return max(0, min(self.steps_per_epoch, self.num_steps - epoch * self.steps_per_epoch))

    def epoch_text(self, epoch: int) -> str:
        """People count epochs from 1, files from 0."""
        return f"epoch {epoch + 1}/{self.epochs}"

    def _is_share(self, name: str) -> bool:
        return name.removeprefix(RAW) in self.shares

    def metrics_text(self, metrics: Mapping[str, float]) -> str:
        """The first metrics, shares in percent and others as they are; the history has all."""
        return "  ".join(
            f"{name} {value:.2%}" if self._is_share(name) else f"{name} {value:.4g}"
            for name, value in islice(metrics.items(), _MOST_TOLD)
        )

    def step_text(self, row: Mapping[str, Any], samples_per_s: float, left_s: float) -> str:
        """One step in a log: which of how many, loss, metrics, learning rate, speed, time left.

        Args:
            row: step (from 0), epoch, loss, lr, metrics.
            left_s: seconds that the rest of the steps take at this speed.
        """
        parts = [
            f"step {row['step'] + 1}/{self.num_steps}",
            self.epoch_text(row["epoch"]),
            f"loss {row['loss']:.4f}",
            self.metrics_text(row["metrics"]),
            f"lr {row['lr']:.3g}",
            f"{samples_per_s:.1f} {self.unit}/s",
            f"{_duration(left_s)} left",
        ]
        return "  ".join(filter(None, parts))

    def bar_text(
        self, row: Mapping[str, Any], samples_per_s: float, left_s: float, room: int = 0
    ) -> str:
        """The same next to a bar, which shows the epoch itself.

        Args:
            room: columns that it may take; 0: any number. The least needed go first.
        """
        parts = {
            "step": f"step {row['step'] + 1}/{self.num_steps}",
            "loss": f"loss {row['loss']:.4f}",
            "lr": f"lr {row['lr']:.3g}",
            "speed": f"{samples_per_s:.1f} {self.unit}/s",
            "left": f"{_duration(left_s)} left",
        }
        for name in ("lr", "step", "speed", "loss"):
            if room and len(", ".join(parts.values())) > room:
                del parts[name]
        return ", ".join(parts.values())


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
