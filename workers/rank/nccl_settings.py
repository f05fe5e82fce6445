"""What NCCL and torch's watch over it read from the environment, set before the first group.

    a collective takes longer than --timeout-s      on all of its ranks
    [1] torch writes what this rank had begun       its flight recorder, a file per process
    [2] waits for the other ranks to do the same    four times `_DUMP_MS`
    [3] ends the process by SIGABRT                 the agent finds the file, and names it

What the user has set stays.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from bundlerun.launcher.run_folder.paths import RunPaths

_DUMP_MS = 2000
"""How long [1] may take: a second is enough on a disk, a shared folder may be slower. torch's own
15 s would keep a run that is lost anyway for a minute."""
_NUM_RECORDS = 2000
"""Operations that torch remembers; a step has tens of them."""

_SETTINGS: Mapping[tuple[str, ...], str] = {
    ("TORCH_NCCL_DUMP_ON_TIMEOUT",): "1",
    ("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC",): str(_DUMP_MS),
    ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE"): str(_NUM_RECORDS),
    # Links are groups of two ranks, so that it has nothing to warn of.
    ("TORCH_NCCL_SHOW_EAGER_INIT_P2P_SERIALIZATION_WARNING",): "false",
}
"""By the names of torch 2.11 to 2.14; the second is an older one, which a user may have set."""
_FILE = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")


def missing_settings(known: Mapping[str, str], file: Path) -> dict[str, str]:
    """Pure: what is to be set in addition to what is known.

    Args:
        known: the environment.
        file: what the name of the flight recorder's file begins with; torch adds a number.
    """
    wanted = {**_SETTINGS, _FILE: str(file)}
    return {
        names[0]: value
        for names, value in wanted.items()
        if not any(name in known for name in names)
    }


def prepare_nccl(
    paths: RunPaths, node_name: str, environ: MutableMapping[str, str] = os.environ
) -> None:
    """Sets what is missing, for this process; call it before it makes its first group."""
    file = paths.flight_record(node_name, os.getpid())
    with suppress(OSError):  # then there is no record, which is told when one is wanted
        file.parent.mkdir(parents=True, exist_ok=True)
        for old in file.parent.glob(f"{file.name}*"):  # an earlier process of this number
            old.unlink()
    environ.update(missing_settings(environ, file))
