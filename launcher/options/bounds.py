"""The bounds of numbers that options give."""

from __future__ import annotations

import math

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.declared import flag_of


def at_least(least: int, config: object, *names: str) -> None:
    """Raises ConfigError where a number of `config` is below `least`, or not finite."""
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:  # false for NaN, too
            raise ConfigError(f"{flag_of(name)} {value} must be {least} or more, and finite")


def finite_above_0(config: object, *names: str) -> None:
    """Raises ConfigError where a number of `config` is not above 0, or not finite."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{flag_of(name)} {value} must be above 0, and finite")
