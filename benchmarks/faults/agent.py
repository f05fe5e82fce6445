"""`bundlerun` with its places wrapped: python -m benchmarks.faults.agent run OPTION... DATA."""

from __future__ import annotations

import os
import sys

from benchmarks.faults.inject import Injector
from benchmarks.faults.places import wrap_all
from bundlerun.launcher.cli import main

if __name__ == "__main__":
    wrap_all(Injector(os.environ))
    sys.exit(main())
