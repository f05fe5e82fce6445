"""Keeps what was found: a line for each finding at once, a JSON file that is always whole, a table.

The file is written again after each finding, so that a run that is killed leaves what it has found.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.gpu.finding import FAILURES, Finding
from bundlerun.launcher.run_folder.files import write_text

FILE = "gpu.json"
LOG = "gpu.log"
"""What the cases printed, in the same folder."""
_WIDEST = 60
"""Characters of a column; the line of a finding and the file have all of it."""


class Report:
    """The findings of one run.

    Args:
        folder: gets the files.
        is_stand_in: whether something stood for the GPU.
    """

    def __init__(self, folder: Path, *, is_stand_in: bool) -> None:
        self.folder = folder
        self.findings: list[Finding] = []
        self._seconds: dict[str, float] = {}
        self._about = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "device": "stand-in" if is_stand_in else "GPU",
            "cores": os.cpu_count(),
            "python": platform.python_version(),
        }
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / LOG
        self.log.write_bytes(b"")
        self._write()

    @property
    def is_good(self) -> bool:
        """Whether everything was as wanted."""
        return not any(finding.ok in FAILURES for finding in self.findings)

    def add(self, finding: Finding) -> None:
        """Prints a finding and keeps it."""
        self.findings.append(finding)
        print(finding.line(), flush=True)
        self._write()

    def took(self, case: str, seconds: float) -> None:
        """Keeps how long a case took."""
        self._seconds[case] = round(seconds, 1)
        self._write()

    def table(self) -> str:
        """All findings, in columns."""
        head = ("case", "measured", "wanted", "ok")
        rows = [head, *((f"{f.case} {f.what}", f.measured, f.wanted, f.ok) for f in self.findings)]
        return "\n".join(_aligned(rows))

    def _write(self) -> None:
        found = {
            **self._about,
            "seconds": self._seconds,
            "findings": [asdict(finding) for finding in self.findings],
        }
        write_text(self.folder / FILE, json.dumps(found, indent=1) + "\n")


def _short(text: str) -> str:
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 3]}..."


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[_short(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
