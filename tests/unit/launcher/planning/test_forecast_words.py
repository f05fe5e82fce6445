"""Forecasts as they are read."""

from __future__ import annotations

import json

from bundlerun.launcher.planning.candidate import Forecast, Term
from bundlerun.launcher.planning.forecast_words import (
    bytes_text,
    forecast_document,
    forecast_lines,
    seconds_text,
)

FORECAST = Forecast(
    step_s=0.5,
    terms={Term.COMPUTE: 0.3, Term.EXCHANGE: 0.2, Term.UPDATE: 0.0},
    bubble=0.4,
    egress_bytes=34_500_000,
    exchange_s=0.35,
    memory=(),
)


def test_a_forecast_is_read_term_by_term() -> None:
    lines = list(forecast_lines(FORECAST, 64, num_steps=7200, unit="images"))
    assert lines == [
        "500 ms a step, 128 images/s, 1:00:00 for the run, limited by sums of gradients",
        "computing                300 ms   60%",
        "sums of gradients        200 ms   40%",
        "devices idle for 40% of a step",
        "a node sends 34.5 MB a step; sums between nodes take 350 ms, hidden or not",
    ]


def test_the_document_has_the_same_numbers() -> None:
    found = json.loads(json.dumps(forecast_document(FORECAST, 64, num_steps=7200)))
    assert (found["samples_per_s"], found["hours"]) == (128.0, 1.0)
    assert found["terms"]["sums of gradients"] == 0.2
    assert found["limit"] == "sums of gradients"
    assert forecast_document(FORECAST, 64)["hours"] is None


def test_units_fit_the_numbers() -> None:
    assert [seconds_text(s) for s in (12.34, 0.0456, 3e-5)] == ["12.3 s", "45.6 ms", "30 us"]
    assert [bytes_text(n) for n in (12, 4_500, 3e9)] == ["12 bytes", "4.5 kB", "3 GB"]
