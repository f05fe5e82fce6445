"""All checks of the newest measurements in one table and one picture; measures nothing."""

from __future__ import annotations

from typing import cast

from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import FOLDER, Check, Options, history, print_table

CLAIM = "every target is met"


def run(options: Options) -> None:
    """Reads docs/benchmarks/*.json."""
    rows = []
    bars = Bars("target over measured, or the inverse: 1 or more is met", "Targets")
    for path in sorted(FOLDER.glob("*.json")):
        newest = history(path.stem)[-1]
        for check in _checks(newest):
            word = "met" if check.is_met else "NOT MET"
            rows.append(
                (path.stem, check.name, check.target, check.measured, word, str(newest["date"]))
            )
            bars.add(f"{path.stem}: {check.name}", "newest", _margin(check))
    print_table(("benchmark", "what", "target", "measured", "", "when"), rows)
    draw_bars("summary", bars, options, line=1.0)


def _checks(entry: dict[str, object]) -> list[Check]:
    found = cast(list[dict[str, object]], entry.get("checks", []))
    return [
        Check(str(c["name"]), cast(float, c["measured"]), cast(float, c["target"])) for c in found
    ]


def _margin(check: Check) -> float:
    """At least 1 where it is met; at most 3, for the picture."""
    over = check.measured / check.target if check.target else 1.0
    is_low = check.name.endswith("at most")
    return min(3.0, 1 / max(over, 1e-9) if is_low else over)
