"""Times, shares and rows of numbers as people type them: 1.2s, 5y, 1%, 10..100000."""

from __future__ import annotations

import math
import re

from bundlerun.launcher.errors import ConfigError

_UNITS = {
    "ms": 1e-3,
    "s": 1.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
    "y": 365.25 * 86400.0,
}
NEVER = "never"


def read_span(
    flag: str, typed: str, *, may_be_zero: bool = True, may_be_never: bool = False
) -> float:
    """Seconds of `1.2s`, `500ms`, `30min`, `4h`, `2d`, `5y`; of `never` inf.

    Raises:
        ConfigError: it is none of these, or not in range.
    """
    if may_be_never and typed == NEVER:
        return math.inf
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([a-z]+)", typed.strip())
    if not match or match[2] not in _UNITS:
        words = f", or {NEVER!r}" if may_be_never else ""
        raise ConfigError(
            f"{flag} {typed!r} is not a number with one of {', '.join(_UNITS)}{words}; try 30min"
        )
    seconds = float(match[1]) * _UNITS[match[2]]
    if not (seconds > 0 or may_be_zero) or math.isinf(seconds):
        raise ConfigError(f"{flag} {typed!r} must be above 0, and finite")
    return seconds


def span_text(seconds: float) -> str:
    """Such as 820 ms, 12.4 s, 4 h, 264 d, 5 y."""
    if math.isinf(seconds):
        return NEVER
    least = {"ms": 0.0, "s": 1.0, "min": 120.0, "h": 7200.0, "d": 86400.0, "y": 730.5 * 86400.0}
    unit = [unit for unit, begin in least.items() if seconds >= begin][-1]
    return f"{seconds / _UNITS[unit]:.3g} {unit}" if seconds else "0 s"


def read_share(flag: str, typed: str) -> float:
    """0.01 of `1%`.

    Raises:
        ConfigError: it is no percentage below 100.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*%", typed.strip())
    if not match or float(match[1]) >= 100:
        raise ConfigError(f"{flag} {typed!r} is not a percentage below 100, such as 1%")
    return float(match[1]) / 100


def read_counts(flag: str, typed: str, *, most: int) -> tuple[int, ...]:
    """(8, 100, 1000) of `8,100..1000`: two dots stand for the powers of ten between.

    Raises:
        ConfigError: it is written otherwise, or a number is not in range.
    """
    found: set[int] = set()
    for part in typed.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\.\.(\d+))?\s*", part)
        ends = [int(each) for each in match.groups() if each is not None] if match else []
        if not ends or ends != sorted(ends) or not 1 <= ends[0] <= ends[-1] <= most:
            raise ConfigError(
                f"{flag} {typed!r} is not numbers from 1 to {most:,}, such as 64,512 or 10..100000"
            )
        found.update(ends)
        found.update(10**power for power in range(12) if ends[0] < 10**power < ends[-1])
    return tuple(sorted(found))
