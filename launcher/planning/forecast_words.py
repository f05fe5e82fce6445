"""A forecast in words, and as plain values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from bundlerun.launcher.planning.candidate import Forecast, Term

_SHOWN = 0.005
"""Of a step: a term below is not worth a line."""


def seconds_text(seconds: float) -> str:
    """Such as 1.23 s or 45.6 ms."""
    for least, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= least:
            return f"{seconds / least:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def bytes_text(num_bytes: float) -> str:
    """Such as 12.3 MB."""
    for least, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= least:
            return f"{num_bytes / least:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def forecast_line(
    forecast: Forecast, batch_size: int, *, num_steps: int = 0, unit: str = "samples"
) -> str:
    """The whole of it in a line.

    Args:
        forecast: of a step.
        batch_size: samples of a step.
        num_steps: of the run; 0: not known.
        unit: what a sample is called, plural.
    """
    parts = [
        f"{seconds_text(forecast.step_s)} a step",
        f"{batch_size / forecast.step_s:,.4g} {unit}/s" if forecast.step_s else "",
        f"{_duration(forecast.step_s * num_steps)} for the run" if num_steps else "",
        f"limited by {forecast.limit.value}",
    ]
    return ", ".join(filter(None, parts))


def forecast_lines(
    forecast: Forecast, batch_size: int, *, num_steps: int = 0, unit: str = "samples"
) -> Iterator[str]:
    """Yields it as a person reads it: the line, and what it consists of; arguments as there."""
    yield forecast_line(forecast, batch_size, num_steps=num_steps, unit=unit)
    for term in Term:
        seconds = forecast.terms.get(term, 0.0)
        if seconds >= _SHOWN * forecast.step_s:
            yield f"{term.value:<22}{seconds_text(seconds):>9}  {seconds / forecast.step_s:4.0%}"
    yield f"devices idle for {forecast.bubble:.0%} of a step"
    if forecast.egress_bytes:
        sums = seconds_text(forecast.exchange_s)
        took = f"; sums between nodes take {sums}" if forecast.exchange_s else ""
        yield f"a node sends {bytes_text(forecast.egress_bytes)} a step{took}, hidden or not"


def forecast_document(forecast: Forecast, batch_size: int, *, num_steps: int = 0) -> dict[str, Any]:
    """It as `--json` prints it."""
    step_s = forecast.step_s
    return {
        "step_s": step_s,
        "terms": {term.value: seconds for term, seconds in forecast.terms.items()},
        "limit": forecast.limit.value,
        "bubble": forecast.bubble,
        "egress_bytes": forecast.egress_bytes,
        "exchange_s": forecast.exchange_s,
        "samples_per_s": batch_size / step_s if step_s else 0.0,
        "hours": step_s * num_steps / 3600 if num_steps else None,
    }


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
