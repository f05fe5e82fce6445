"""`bundlerun track`: tells a tracker what it does not have of a run, now or once it is over."""

from __future__ import annotations

import argparse
import sys
import time

from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.errors import EXIT_DONE, EXIT_FAILED, ConfigError
from bundlerun.launcher.options.declared import text_list
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.__main__ import follow
from bundlerun.launcher.trackers.known import check_trackers


def run(args: argparse.Namespace) -> int:
    """Tells each tracker; 0 if all have everything.

    Raises:
        ConfigError: there is no such run or tracker, or a package is missing.
    """
    paths = run_paths(args.run_dir)
    names = list(dict.fromkeys(text_list(",".join(args.tracker))))
    check_trackers(names)
    if not paths.metrics.exists():
        raise ConfigError(f"{str(paths.metrics)!r} is not there: the run has no history yet")
    # All are tried, whatever becomes of the first.
    have_all = [_told(paths, name, args.timeout_s) for name in names]
    return EXIT_DONE if all(have_all) else EXIT_FAILED


def _told(paths: RunPaths, name: str, timeout_s: float) -> bool:
    def wait(seconds: float) -> bool:
        time.sleep(seconds)
        return True

    def say(text: str) -> None:
        print(text, file=sys.stderr)

    has_all = follow(paths, name, is_over=wait, say=say, limit_s=timeout_s, is_all=True)
    print(f"{name}: " + ("has the whole history" if has_all else "does not have everything"))
    return has_all
