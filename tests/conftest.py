"""What all tests share."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

SLOW_VARIABLE = "BUNDLERUN_TEST_SLOW"

# Threads that spin at the end of an operation waste whole time slices on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A deadline per example says more about the load of the machine than about the code.
settings.register_profile("bundlerun", deadline=None)
settings.load_profile("bundlerun")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones run where they are asked for; Slurm has a variable of its own."""
    if os.environ.get(SLOW_VARIABLE) == "all":
        return
    skip = pytest.mark.skip(reason=f"slow: {SLOW_VARIABLE}=all runs it")
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("slurm"):
            item.add_marker(skip)
