"""`bundlerun doctor`: whether machines, network and folders are fit for a run, and the mend."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import get_args

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.doctor.findings import count_text, exit_code_of, lines_of
from bundlerun.launcher.doctor.local import Wanted, examine
from bundlerun.launcher.meeting.default_folder import RUNS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun doctor`."""
    parser.description = (
        "Examine this machine: versions, devices, memory, network, run folder and data; with "
        "--peers, all nodes and every link between them. Exit code 3 where a run would fail."
    )
    add = parser.add_argument
    add("data", nargs="?", default="", metavar="DATA", help="what would be trained on")
    add("--quick", action="store_true", help="only what takes a moment: starts no other program")
    add("--json", action="store_true", help="print it as one JSON document")
    add("--run-dir", default=str(RUNS), help="run folder to try (default: %(default)s)")
    add("--devices", default="auto", choices=get_args(DeviceChoice), help="what a run would use")


def run(args: argparse.Namespace) -> int:
    """Prints the findings; returns 3 where one of them is an error."""
    start = time.monotonic()
    wanted = Wanted(
        run_dir=Path(args.run_dir),
        data=args.data,
        devices=args.devices,
        is_quick=args.quick,
    )
    found = examine(wanted, os.environ)
    seconds = time.monotonic() - start
    if args.json:
        plain = [each.to_plain() for each in found]
        print(json.dumps({"seconds": round(seconds, 3), "findings": plain}, indent=2))
    else:
        print(*lines_of(found), sep="\n")
        print(f"{count_text(found)} ({seconds:.1f} s)")
    return exit_code_of(found)
