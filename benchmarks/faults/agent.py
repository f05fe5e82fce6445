"""`bundlerun` with its places wrapped: python -m benchmarks.faults.agent run OPTION... DATA."""

from __future__ import annotations

import os
import sys

from benchmarks.faults.inject import FREE_STAYS_VARIABLE, Injector
from benchmarks.faults.places import wrap_all
from bundlerun.launcher.cli import main
from bundlerun.launcher.rendezvous.protocol import growth

if __name__ == "__main__":
    wrap_all(Injector(os.environ))
    # A node that is killed again and again is taken in at once all the same, where that is asked.
    growth._FREE_STAYS = int(os.environ.get(FREE_STAYS_VARIABLE, growth._FREE_STAYS))
    sys.exit(main())
