"""An end to starting again and again under an agent that does not count steps (I12).

bundlerun's agent knows what each start has finished. torchrun's counts starts only, and would spend
all of them, however many, on an error that comes at the same step each time.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

MOST = 3
"""Starts in a row after the same step; as --give-up-after has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Starts:
    """How many starts of one job in a row have begun after the same step."""

    step: int
    count: int

    def after(self, step: int) -> Starts:
        """With one more start, which begins after `step`."""
        return Starts(step=step, count=self.count + 1 if step == self.step else 1)


def count_start(paths: RunPaths, step: int, *, is_first: bool, most: int = MOST) -> None:
    """Counts a start; by one rank.

    Args:
        paths: of the run.
        step: after which it begins.
        is_first: the first of its agent, of which nobody can say that it is in vain.
        most: how many may begin after the same step.

    Raises:
        ConfigError: there were as many.
    """
    before = None if is_first else _read(paths)
    now = Starts(step=step, count=1) if before is None else before.after(step)
    if now.count > most:
        raise ConfigError(
            f"{most} starts in a row have finished no step after step {step}; see the first error "
            f"in the log of the first of them, and start again once it is mended"
        )
    write_text(paths.starts, json.dumps(asdict(now)) + "\n")


def _read(paths: RunPaths) -> Starts | None:
    try:
        return Starts(**json.loads(paths.starts.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
