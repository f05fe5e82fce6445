"""Names for what multiprocessing keeps on the machine, by which a later agent clears it up.

torch's agent makes semaphores in /dev/shm and a folder for its fork server. Python removes them at
the end, and has a process that does so where the end was not orderly; a node that is killed whole
leaves them. So their names say whose they are, and each agent removes those of the dead.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import suppress
from multiprocessing import process, util
from pathlib import Path
from typing import Any

from bundlerun.launcher.run_folder.files import SHARED_MEMORY

_PREFIX = "bundlerun-mp"
_MARK = rf"{_PREFIX}-(\d+)-(\d+)-(\d+)"
_WARNINGS = "PYTHONWARNINGS"
_QUIET = "ignore:resource_tracker:UserWarning"
_util: Any = util


def mark_own(temp: Path | None = None) -> Path | None:
    """Has multiprocessing use names of this process; call it before it has made anything.

    Returns:
        A folder of this process, which goes with it; None where there can be none.
    """
    config = getattr(process.current_process(), "_config", None)
    if not isinstance(config, dict):
        return None
    mark = own_mark()
    folder = (temp or Path(tempfile.gettempdir())) / mark
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError:
        return None
    config["semprefix"] = f"/{mark}"
    config["tempdir"] = str(folder)
    # The priority that Python gives a folder of its own: after all that may still use it.
    _util.Finalize(None, shutil.rmtree, args=[str(folder), True], exitpriority=-100)
    return folder


def quiet_tracker(environ: MutableMapping[str, str]) -> None:
    """Has the process that clears up after a killed one do so without a word about "leaks".

    It is Python's resource tracker; it takes its warning filters from the environment, as do those
    of the ranks. What it does stays as it is.
    """
    known = environ.get(_WARNINGS, "")
    environ[_WARNINGS] = f"{known},{_QUIET}" if known else _QUIET


def own_mark() -> str:
    """What the names of this process begin with: user, process namespace, process."""
    return f"{_PREFIX}-{os.getuid()}-{_namespace()}-{os.getpid()}"


def is_alive(mark: str) -> bool:
    """Whether the process that a mark names may live; no mark, or one from elsewhere: it may."""
    match = re.fullmatch(_MARK, mark)
    if match is None or (int(match[1]), int(match[2])) != (os.getuid(), _namespace()):
        return True
    try:
        # After the last bracket: the name of a process, in brackets, may hold some itself.
        state = Path(f"/proc/{match[3]}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"  # dead, and nobody has asked for its exit code yet


def sweep(
    *,
    shared: Path = SHARED_MEMORY,
    temp: Path | None = None,
    is_alive: Callable[[int], bool] | None = None,
) -> list[Path]:
    """Removes what dead processes of this user and process namespace have left; says what."""
    alive = is_alive or (lambda pid: Path(f"/proc/{pid}").exists())
    swept = []
    for path in _marked(shared, temp or Path(tempfile.gettempdir())):
        match = re.search(_MARK, path.name)
        if match is None or alive(int(match[3])):
            continue
        # A process id of another container says nothing about a process here.
        if (int(match[1]), int(match[2])) != (os.getuid(), _namespace()):
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            swept.append(path)
    return swept


def _marked(shared: Path, temp: Path) -> Iterator[Path]:
    yield from shared.glob(f"sem.{_PREFIX}-*")
    yield from temp.glob(f"{_PREFIX}-*")


def _namespace() -> int:
    """Tells process ids of this container from those of another on the same machine."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
