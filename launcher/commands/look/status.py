"""`bundlerun status`: how a run fares, from the files of its folder."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.errors import EXIT_DONE, ConfigError
from bundlerun.launcher.meeting.site import site_reports
from bundlerun.launcher.report.look import RunLook
from bundlerun.launcher.report.status_text import status_lines
from bundlerun.launcher.report.watch import watch
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import Status
from bundlerun.launcher.terminal import Terminal

LINE_EVERY_S = 10.0
"""Without a terminal: seconds between two lines that tell of steps alone."""
JOB_EVERY_S = 15.0


def run(args: argparse.Namespace) -> int:
    """Prints the status.

    Raises:
        ConfigError: there is no such run, or the options do not go together.
    """
    if args.watch and args.json:
        raise ConfigError("--watch shows a run to people; for programs call --json again and again")
    if not 0.1 <= args.every <= 3600:
        raise ConfigError(f"--every {args.every:g} is not from 0.1 to 3600 seconds")
    paths = run_paths(args.run_dir)
    view = _View(paths)
    if args.watch:
        status = watch(
            view.look.status,
            view.lines,
            sys.stdout,
            _terminal,
            every_s=args.every,
            line_every_s=max(args.every, LINE_EVERY_S),
        )
        # The screen of its own is gone: what became of the run stays to be read.
        if _terminal().is_live:
            print("\n".join(view.lines(status, _terminal())))
        return EXIT_DONE
    status = view.look.status()
    if args.json:
        members = {node.name: node.ranks for node in view.look.members()}
        print(json.dumps({**asdict(status), "members": members, **site_reports(paths)}, indent=2))
        return EXIT_DONE
    print("\n".join(view.lines(status, _terminal())))
    return EXIT_DONE


def _terminal() -> Terminal:
    return Terminal.of(sys.stdout, os.environ)


class _View:
    """A run as lines."""

    def __init__(self, paths: RunPaths) -> None:
        self._paths = paths
        self.look = RunLook(paths, time.time)
        self._jobs: Mapping[str, Mapping[str, object] | None] = {}
        self._asked_at = -math.inf

    def lines(self, status: Status, terminal: Terminal) -> Sequence[str]:
        # A batch system is not asked at each redraw.
        if time.monotonic() - self._asked_at >= JOB_EVERY_S:
            self._jobs, self._asked_at = site_reports(self._paths), time.monotonic()
        return status_lines(
            status,
            self.look.members(),
            terminal,
            shape=self.look.shape,
            chunks=self.look.chunks,
            extra=[
                (f"{site} job", str(job["text"]))
                for site, job in self._jobs.items()
                if job is not None
            ],
        )
