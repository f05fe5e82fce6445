"""`bundlerun drain`: asks a run to stop in good order, whoever and wherever its nodes are."""

from __future__ import annotations

import argparse
import sys
import time

from bundlerun.launcher.agreement.claim import holder_now
from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.stop_request import request_stop

_POLL_S = 0.2


def run(args: argparse.Namespace) -> int:
    """Writes the request; 0 if it is written and, with --wait, followed.

    Raises:
        ConfigError: there is no such run, or its folder cannot be written.
    """
    paths = run_paths(args.run_dir)
    before, holder = read_outcome(paths), holder_now(paths)
    if before is not None:
        print(f"the run has ended already: {before.state}, {before.reason}")
        if not holder:
            return EXIT_DONE
        print(f"but {holder} has its folder, and may be about to resume it")
    try:
        request_stop(paths, "bundlerun drain")
    except OSError as exc:
        raise ConfigError(f"cannot write {str(paths.drain)!r}: {exc.strerror}") from exc
    if not args.wait:
        print(f"asked; bundlerun status {args.run_dir} says what came of it")
        return EXIT_DONE
    deadline = time.monotonic() + args.wait
    while time.monotonic() < deadline:
        ended = read_outcome(paths)
        # An outcome from before the request counts only once nobody holds the folder any more.
        if ended is not None and (ended != before or not holder_now(paths)):
            print(f"{ended.state}: {ended.reason}")
            return EXIT_DONE if ended.state != "failed" else EXIT_FAILED
        time.sleep(_POLL_S)
    print(f"not stopped within {args.wait:g} s; the request stays", file=sys.stderr)
    return EXIT_FAILED
