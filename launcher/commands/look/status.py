"""`bundlerun status`: how a run fares, from the files of its folder."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict

from bundlerun.launcher.agreement.claim import gone_holder
from bundlerun.launcher.commands.run_folder import add_run_argument, run_paths
from bundlerun.launcher.errors import EXIT_DONE
from bundlerun.launcher.meeting.site import site_reports
from bundlerun.launcher.run_folder.checkpoints import survey
from bundlerun.launcher.run_folder.events import read_events
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.status import Status, status_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun status`."""
    parser.description = "Show how a run fares: step, nodes, failures, checkpoints, goodput."
    add_run_argument(parser)
    parser.add_argument("--json", action="store_true", help="print it as one JSON document")


def run(args: argparse.Namespace) -> int:
    """Prints the status.

    Raises:
        ConfigError: there is no such run.
    """
    paths = run_paths(args.run_dir)
    # Manifests and sizes only: a status reads no weights.
    found = survey(paths).found
    status = status_of(
        read_rows(paths.metrics),
        read_events(paths.events),
        read_outcome(paths),
        checkpoint=found[0].step if found else None,
        now=time.time(),
        gone=gone_holder(paths),
    )
    jobs = site_reports(paths)
    if args.json:
        print(json.dumps({**asdict(status), **jobs}, indent=2))
        return EXIT_DONE
    print(status_text(status))
    for site, job in jobs.items():
        if job is not None:
            print(f"{site} job".ljust(12), job["text"])
    return EXIT_DONE


def status_text(status: Status) -> str:
    """The status for people."""
    reason = f" ({status.reason})" if status.reason else ""
    lines = [f"state        {status.state}{reason}"]
    loss = "" if status.loss is None else f", loss {_number(status.loss)}"
    lines.append(f"step         {status.step}, epoch {status.epoch + 1}{loss}")
    if status.step_s is not None:
        lines.append(f"speed        {status.step_s:.3g} s a step")
    if status.goodput is not None:
        lines.append(f"goodput      {status.goodput:.1%} of the time went into steps that stay")
    if status.quiet_s is not None and status.state in ("running", "quiet", "lost"):
        lines.append(f"last word    {status.quiet_s:.1f} s ago")
    lines.append(f"nodes        {', '.join(status.nodes) or 'none'} (round {status.round})")
    kept = "none" if status.checkpoint is None else f"step {status.checkpoint}"
    lines.append(f"checkpoint   {kept}")
    lines.append(f"restarts     {status.num_restarts}")
    lines += [f"failure      {text}" for text in status.failures]
    for recovery in status.recoveries:
        phases = ", ".join(f"{name} {seconds:.2f}" for name, seconds in recovery.phases.items())
        lines.append(
            f"recovery     {recovery.when[:19]}  {recovery.node}, {recovery.why}: {phases} s"
        )
    return "\n".join(lines)


def _number(value: float | str) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
