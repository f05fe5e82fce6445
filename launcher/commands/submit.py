"""`bundlerun submit`: sends a run to Slurm; what it does is in the package `slurm`.

That one imports this package; so it is named here and not imported, as the workers are.
"""

from __future__ import annotations

import argparse
import importlib

MODULE = "bundlerun.slurm.submit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `bundlerun submit`."""
    importlib.import_module(MODULE).add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Submits a job, or prints what would be submitted."""
    return int(importlib.import_module(MODULE).run(args))
