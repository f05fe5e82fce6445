from __future__ import annotations

import math

import pytest

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.spans import read_counts, read_share, read_span, span_text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1.2s", 1.2), ("500ms", 0.5), ("30 min", 1800), (".5h", 1800), ("2d", 172800), ("0s", 0)],
)
def test_a_time_has_a_unit(text: str, seconds: float) -> None:
    assert read_span("--x", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "5m", "-1s", "1e9s", "5 y 2 d", "never", "inf"])
def test_other_times_are_refused_with_the_units(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--x .* is not a number with one of ms, s, min, h, d, y"
    ):
        read_span("--x", text)


def test_bounds_of_a_time() -> None:
    assert read_span("--x", "never", may_be_never=True) == math.inf
    with pytest.raises(ConfigError, match="--x '0s' must be above 0"):
        read_span("--x", "0s", may_be_zero=False)
    with pytest.raises(ConfigError, match="finite"):
        read_span("--x", f"{'9' * 400}s")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (0.82, "820 ms"), (12.4, "12.4 s"), (90, "90 s"), (14400, "4 h"),
     (264 * 86400, "264 d"), (5 * 365.25 * 86400, "5 y"), (math.inf, "never")],
)  # fmt: skip
def test_times_are_told_in_the_unit_that_people_use(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


def test_shares() -> None:
    assert read_share("--x", "1.5%") == pytest.approx(0.015)
    for text in ("1", "100%", "-1%", "%", "a%"):
        with pytest.raises(ConfigError, match=r"--x .* is not a percentage below 100"):
            read_share("--x", text)


def test_counts_are_listed_or_by_powers_of_ten() -> None:
    assert read_counts("--n", "64,512", most=1000) == (64, 512)
    assert read_counts("--n", "512, 8..2000", most=5000) == (8, 10, 100, 512, 1000, 2000)
    for text in ("", "0", "9..8", "a", "1..", "5001", "1...3", "-4"):
        with pytest.raises(ConfigError, match=r"--n .* is not numbers from 1 to 5,000"):
            read_counts("--n", text, most=5000)
