"""What all tests share."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

from bundlerun.launcher.layout.gpus import count_gpus

if TYPE_CHECKING:
    from tests.warm import Warm

_HERE = Path(__file__).parent
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

_JOBS, _RANKS, _GPU = "jobs", "ranks", "gpu"
_LANES = (_JOBS, _RANKS, _GPU)
"""Of each, one test at a time on a machine: they start many processes, which have limits. The
longest is begun first, and all begin before the files of other tests, which fill up the rest. More
of them at once would only share the cores, and the longest would end alone."""
_LANE_OF_ROOM = {"e2e": _JOBS, "slurm": _JOBS, "launchers": _JOBS, "ranks": _RANKS}
_LANE_OF_FILE = {"test_gpu_benchmark.py": _GPU}
"""Of the files of `e2e`: one long run."""


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

    class Lanes(LoadScopeScheduling):  # type: ignore[misc] - it has no types
        def _split_scope(self, nodeid: str) -> str:
            _, room, file, *_ = re.split("/|::", nodeid)
            return _lane_of(room, file) or nodeid.split("::")[0]

    config.option.loadscopereorder = False  # which would begin with the most tests
    return Lanes(config, log)


def _lane_of(room: str, file: str) -> str:
    """Empty for a test that may run beside any other."""
    lane = _LANE_OF_ROOM.get(room, "")
    return _LANE_OF_FILE.get(file, lane) if room == "e2e" else lane


def _turn(item: pytest.Item) -> int:
    """Tests of the first lane come first, those of no lane last."""
    room, file = item.path.relative_to(_HERE).parts[:2]
    lane = _lane_of(room, file)
    return _LANES.index(lane) if lane else len(_LANES)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what is not asked for, or cannot run here, and says so; puts what is long first.

    Raises:
        pytest.UsageError: the name of a test has an address, so that each process has another.
    """
    for item in items:
        if " at 0x" in item.nodeid:
            raise pytest.UsageError(f"name the parameters with ids=...: {item.nodeid}")
        reason = _why_slow(item) or _why_gpu(item)
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=_turn)


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
