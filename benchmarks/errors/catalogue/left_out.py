"""What this benchmark cannot make, by name, and where it is tried instead."""

from __future__ import annotations

from benchmarks.errors.case import LeftOut

_GPUS = "tests/unit/launcher/layout/machine/test_gpus.py"
_DISK = "needs a file system of its own"
LEFT_OUT = (
    LeftOut("a GPU that another process fills", "needs a GPU; `make gpu`, case G14"),
    LeftOut("a GPU named that is not there", f"needs a GPU; {_GPUS}"),
    LeftOut("out of memory on a GPU", "needs a GPU; `make gpu`, case G14"),
    LeftOut("a MIG slice", f"needs a GPU that has some; {_GPUS}"),
    LeftOut("two agents on one GPU", f"needs a GPU; {_GPUS}"),
    LeftOut(
        "a full disk",
        f"{_DISK}; tests/unit/workers/state/test_checkpoint_failures.py",
    ),
    LeftOut(
        "no room in /dev/shm",
        f"{_DISK}; tests/unit/workers/snapshot/test_room.py",
    ),
    LeftOut("standbys without memory for them", "needs a machine that is nearly full"),
    LeftOut("the launchers themselves", "are not all installed; `make test-launchers`"),
)
