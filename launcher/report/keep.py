"""Makes the report of a run that goes on; a process of its own, which is in nobody's way.

`python -m bundlerun.launcher.report.keep RUN_DIR [--last]`, started by the agent of a node
(`bundlerun.launcher.agent.kept_report`), ends with it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from bundlerun.launcher.errors import EXIT_DONE, EXIT_NODE
from bundlerun.launcher.process import follow_parent
from bundlerun.launcher.run_folder.paths import RunPaths

LAST = "--last"
_LOWEST = 19


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report of the run folder that is named; the last one is waited for."""
    folder, *words = sys.argv[1:] if argv is None else argv
    # Before the imports, which take most of a short run's report.
    if words != [LAST]:
        with suppress(OSError):
            os.nice(_LOWEST)
        with suppress(OSError, AttributeError):  # gets a core only where nobody else wants it
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    from bundlerun.launcher.report.make import write_report

    paths = RunPaths(Path(folder))
    try:
        write_report([paths], paths.report)
    except OSError:  # a full disk, a folder that is gone: the next one may do
        return EXIT_NODE
    return EXIT_DONE


if __name__ == "__main__":
    follow_parent()
    sys.exit(main())
