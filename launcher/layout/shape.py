"""The shape of a bundle: how many devices each of its stages has; and others that will do."""

from __future__ import annotations

from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError

AUTO = "auto"
"""What a user types who leaves something to the planner."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Devices per stage of a bundle.

        >>> shape = Shape.parse("4,2")          # as `--shape 4,2`
        >>> shape.num_stages, shape.size, str(shape)
        (2, 6, '4,2')
        >>> shape.widths[0]                     # devices of the first stage
        4
        >>> shape.num_bundles(16), shape.usable_devices(16)
        (2, 12)
        >>> [str(each) for each in Shape.parse("1,1,1|1,1").family]
        ['1,1,1', '1,1']

    Args:
        widths: devices of each stage, in order.
        is_auto: whether the planner is to choose the widths, and these only stand for them.
        others: widths of shapes that will do where the devices do not hold this one, or hold it
            worse; the best first.

    Raises:
        ConfigError: there is no stage, or one without a device.
    """

    widths: tuple[int, ...]
    is_auto: bool = False
    others: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.widths:
            raise ConfigError("--shape is empty; give the devices per stage, for example 1,1")
        if min(self.widths) < 1:
            raise ConfigError(
                f"--shape {self} has a stage without a device; every number must be 1 or more"
            )
        for other in self.others:
            Shape(other)
        if len({self.widths, *self.others}) <= len(self.others):
            raise ConfigError(f"--shape {self} has a shape twice; give each once")

    @classmethod
    def parse(cls, text: str) -> Shape:
        """Reads `4,2`, or `4,2|2,1|1` with those that will do, or `auto`.

        Raises:
            ConfigError: see the class.
            ValueError: these are not whole numbers separated by commas.
        """
        if text.strip() == AUTO:
            return cls((1, 1), is_auto=True)
        first, *others = (tuple(int(n) for n in one.split(",")) for one in text.split("|"))
        return cls(first, others=tuple(others))

    def __str__(self) -> str:
        if self.is_auto:
            return AUTO
        return "|".join(",".join(map(str, widths)) for widths in (self.widths, *self.others))

    @property
    def family(self) -> tuple[Shape, ...]:
        """All that will do, this one first."""
        return tuple(Shape(widths) for widths in (self.widths, *self.others))

    @property
    def num_stages(self) -> int:
        """Stages of a bundle."""
        return len(self.widths)

    @property
    def size(self) -> int:
        """Devices of a bundle."""
        return sum(self.widths)

    def num_bundles(self, num_devices: int) -> int:
        """Whole bundles that this many devices hold."""
        return num_devices // self.size

    def usable_devices(self, num_devices: int) -> int:
        """Devices of one node that the launcher starts ranks on; the rest stay idle.

        A node that holds whole bundles runs only those. A smaller one gives all it has to bundles
        that span nodes. Of several shapes it is the one that uses the most.
        """
        return max(one.num_bundles(num_devices) * one.size or num_devices for one in self.family)
