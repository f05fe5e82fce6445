"""The accelerator of the tests as the device of a case: what it asks for is done late, and counted.

It is in `tests`, not here: only `--stand-in` loads it.
"""

from __future__ import annotations

import importlib
from typing import Any


class StandIn:
    """Makes it this process's device, for good; forks of the process have it, too."""

    def __init__(self) -> None:
        ranks: Any = importlib.import_module("tests.standin.ranks")
        # One thread does the backwards: torch makes its threads once, and a fork has none of them.
        self._device: Any = ranks.install(in_one_thread=True)
        ranks.attach(self._device, may_share=True)

    @property
    def num_waits(self) -> int:
        """How often this process has waited for the device."""
        return int(self._device.record.waits.total())

    @property
    def num_operations(self) -> int:
        """What this process has given the device."""
        return int(self._device.record.operations.total())

    def faults(self) -> list[str]:
        """What this process did that would go wrong on a GPU, if not here then another day."""
        return sorted({str(fault) for fault in self._device.record.faults})
