"""Where runs are whose folder nobody names."""

from __future__ import annotations

from pathlib import Path

RUNS = Path("runs")
LATEST = RUNS / "latest"
"""A link to the newest run."""
