"""The result of a run: a file, and lines for people."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from bundlerun.launcher.console import noun_for
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.report.best import LOSS
from bundlerun.workers.report.words import Course


@dataclass(slots=True)
class Summary:
    """The result of a run."""

    epochs: int = 0
    steps: int = 0
    samples_per_s: float = 0.0
    train_s: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    phases: dict[str, float] = field(default_factory=dict)
    """Seconds per phase, mean over the ranks."""
    num_unreadable: int = 0


def read_summary(paths: RunPaths) -> Summary:
    """The summary of earlier attempts; an empty one if none has ended."""
    try:
        return Summary(**json.loads(paths.summary.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return Summary()


def summary_lines(summary: Summary, course: Course) -> list[str]:
    """The summary for people, a line each."""
    steps = f"{summary.steps} {noun_for(summary.steps, 'step')} of {course.num_steps}"
    lines = [f"done         {steps}, epoch {summary.epochs} of {course.epochs}"]
    if summary.validation:
        values = dict(summary.validation)
        loss = values.pop(LOSS, None)
        shown = "" if loss is None else f"loss {loss:.4f}"
        text = "  ".join(filter(None, [course.metrics_text(values), shown]))
        lines.append(f"validation   {text}")
    lines.append(
        f"throughput   {summary.samples_per_s:.1f} {course.unit}/s over {summary.train_s:.1f} s"
    )
    parts = [f"{p} {s:.1f}" for p, s in summary.phases.items() if s >= 0.05]
    if parts:
        lines.append("seconds      " + ", ".join(parts) + " (mean over ranks)")
    if summary.num_unreadable:
        lines.append(
            f"unreadable   {summary.num_unreadable} reads, replaced by the next readable one"
        )
    return lines
