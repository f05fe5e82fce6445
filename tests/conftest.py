"""What all tests share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from bundlerun.launcher.layout.machine.gpus import count_gpus

if TYPE_CHECKING:
    from tests.warm import Warm

SLOW_VARIABLE = "BUNDLERUN_TEST_SLOW"
GPU_VARIABLE = "BUNDLERUN_TEST_GPU"

# Before torch is loaded, and for all children. Tests fork ranks from this process, which must not
# start CUDA, not even to look; and on a machine with GPUs, ranks that are to run on the CPU would
# take them.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
if not os.environ.get(GPU_VARIABLE):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# Threads that spin at the end of an operation waste whole time slices on a busy machine.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# A deadline per example says more about the load of the machine than about the code.
settings.register_profile("bundlerun", deadline=None)
settings.load_profile("bundlerun")

_ONE_AFTER_ANOTHER = {"e2e": "jobs", "launchers": "jobs", "slurm": "jobs", "ranks": "ranks"}
"""Folders of tests with processes that have limits: of each kind one at a time on a machine."""
_BY_ITSELF = ("test_gpu_benchmark.py",)
"""Files whose tests share one long run that nothing else holds up."""


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Where programs are forked from that need not be started anew."""
    from tests.warm import Warm

    opened = Warm()
    yield opened
    opened.close()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Which tests run side by side; pytest-xdist's own groups are not seen under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class OneAfterAnother(LoadScopeScheduling):  # type: ignore[misc] - it has no types
        def _split_scope(self, nodeid: str) -> str:
            _, room, file, *_ = re.split("/|::", nodeid)
            return file if file in _BY_ITSELF else _ONE_AFTER_ANOTHER.get(room, nodeid)

    return OneAfterAnother(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is not asked for, or cannot run here, and says so.

    Raises:
        pytest.UsageError: the name of a test has an address, so that each process has another.
    """
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"name the parameters with ids=...: {item.nodeid}")
        reason = _why_slow(item) or _why_gpu(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_slow(item: pytest.Item) -> str:
    """The slow ones run where they are asked for; Slurm has a variable of its own."""
    if os.environ.get(SLOW_VARIABLE) == "all" or item.get_closest_marker("slurm"):
        return ""
    return f"slow: {SLOW_VARIABLE}=all runs it" if item.get_closest_marker("slow") else ""


def _why_gpu(item: pytest.Item) -> str:
    """Tests of GPUs and of the CPU run apart: whoever sees a GPU takes it."""
    wanted = [mark.args[0] if mark.args else 1 for mark in item.iter_markers("gpu")]
    if not os.environ.get(GPU_VARIABLE):
        return f"needs a GPU: {GPU_VARIABLE}=1 runs it, and nothing else" if wanted else ""
    if not wanted:
        return f"for the CPU: runs without {GPU_VARIABLE}"
    needed, found = max(wanted), count_gpus(os.environ)
    return f"needs {needed} GPUs, this machine shows {found}" if found < needed else ""
