"""`bundlerun report`: runs as one HTML file, made from their folders; needs the extra report."""

from __future__ import annotations

import argparse
from pathlib import Path

from bundlerun.launcher.commands.run_folder import run_paths
from bundlerun.launcher.errors import EXIT_DONE, ConfigError, NodeError
from bundlerun.launcher.report.figures.drawing import check_drawing

_MOST_RUNS = 12


def run(args: argparse.Namespace) -> int:
    """Writes the report and prints its path.

    Raises:
        ConfigError: there is no such run, or matplotlib is not installed.
        NodeError: the file cannot be written, or a folder not be read.
    """
    if len(args.run_dir) > _MOST_RUNS:
        raise ConfigError(
            f"{len(args.run_dir)} runs are more than one page shows; give {_MOST_RUNS} at most"
        )
    if args.output is not None and Path(args.output).is_dir():
        raise ConfigError(f"-o {args.output!r} is a folder; give a file, such as report.html")
    folders = [run_paths(text) for text in args.run_dir]
    check_drawing("a report")
    # Late: it takes most of a second, and --help needs none of it.
    from bundlerun.launcher.report.make import write_pngs, write_report

    alone = folders[0].report if len(folders) == 1 else Path("report.html")
    output = Path(args.output) if args.output is not None else alone
    try:
        # Before the work: what cannot be written is said at once.
        output.absolute().parent.mkdir(parents=True, exist_ok=True)
        runs = write_report(folders, output)
        print(output)
        if args.png is not None:
            for path in write_pngs(runs, Path(args.png)):
                print(path)
    except OSError as exc:
        raise NodeError(
            f"cannot make the report: {str(exc.filename or output)!r}: {exc.strerror}; give "
            "another -o"
        ) from exc
    return EXIT_DONE
