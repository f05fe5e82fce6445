"""How a profile is to be made."""

from __future__ import annotations

from dataclasses import dataclass

from bundlerun.launcher.choices import DeviceKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """What a device does that is not here.

    Args:
        flop_per_s: floating point operations, in the precision of the run.
        bytes_per_s: of its memory.
        operation_s: that each operation takes at least.
    """

    flop_per_s: float
    bytes_per_s: float
    operation_s: float = 0.0

    def seconds(self, operations: float, num_bytes: float) -> float:
        """Of one operation: it computes while it reads and writes."""
        return max(operations / self.flop_per_s, num_bytes / self.bytes_per_s, self.operation_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileRequest:
    """What is wanted.

    Args:
        sizes: samples of micro-batches, any order; nothing: that of the configuration.
        kind: of the device.
        threads: of the CPU, as many as a rank gets; 0: as torch has it.
        peak: of a device that is not here: its costs are estimated; None: they are measured.
    """

    sizes: tuple[int, ...] = ()
    kind: DeviceKind = "cpu"
    threads: int = 0
    peak: Peak | None = None
