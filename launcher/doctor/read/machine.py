"""Reads what one node has and allows."""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

import psutil

from bundlerun.launcher.doctor.machine import MachineFacts
from bundlerun.launcher.layout.hardware import read_cpus
from bundlerun.launcher.layout.machine.cgroups import group_folders
from bundlerun.launcher.run_folder.files import SHARED_MEMORY

_NO_LIMIT = 1 << 60
"""Control groups of version 1 write a number near 2**63 for none."""


def read_machine(root: Path = Path("/")) -> MachineFacts:
    """What this process may use."""
    cpus, memory = read_cpus(), psutil.virtual_memory()
    limit, used = _group_memory(root)
    shared = _free(SHARED_MEMORY)
    folder = tempfile.gettempdir() if _has_temporary() else "/tmp"
    free, _ = _free(Path(folder)) or (0, 0)
    return MachineFacts(
        cores=tuple(map(len, cpus.numa_nodes)),
        threads=sum(len(core) for node in cpus.numa_nodes for core in node),
        all_threads=psutil.cpu_count() or 1,
        quota=cpus.quota,
        load=os.getloadavg()[0],
        memory_total=memory.total,
        memory_available=memory.available,
        memory_limit=limit,
        memory_used=used,
        shared_total=shared[1] if shared and os.access(SHARED_MEMORY, os.W_OK) else None,
        shared_free=shared[0] if shared else 0,
        open_files=resource.getrlimit(resource.RLIMIT_NOFILE),
        tasks_left=_tasks_left(root),
        pinned=_limit(resource.RLIMIT_MEMLOCK),
        has_rdma=any((root / "sys/class/infiniband").glob("*")),
        temporary=folder,
        temporary_free=free,
        temporary_error=_why_not_written(Path(folder)),
    )


def _has_temporary() -> bool:
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # none of the usual ones can be written
        return False
    return True


def _free(folder: Path) -> tuple[int, int] | None:
    """Bytes that are free for this user, and all, of a folder's file system."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def _why_not_written(folder: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"bundlerun")
            file.flush()
    except OSError as exc:
        return (exc.strerror or str(exc)).lower()
    return ""


def _limit(kind: int) -> int | None:
    soft, _ = resource.getrlimit(kind)
    return None if soft < 0 else soft


def _number(file: Path) -> int | None:
    try:
        value = int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # absent, or `max`
        return None
    return value if value < _NO_LIMIT else None


def _own_groups(root: Path, controller: str) -> list[Path]:
    try:
        own = (root / "proc/self/cgroup").read_text(encoding="utf-8")
    except OSError:
        return []
    return group_folders(own, root / "sys/fs/cgroup", controller)


def _group_memory(root: Path) -> tuple[int | None, int]:
    """The smallest limit of the control groups, and what is used of it, caches not counted."""
    found = []
    for folder in _own_groups(root, "memory"):
        limits = (folder / "memory.max", folder / "memory.limit_in_bytes")
        limit = next((n for n in map(_number, limits) if n is not None), None)
        if limit is None:
            continue
        uses = (folder / "memory.current", folder / "memory.usage_in_bytes")
        used = next((n for n in map(_number, uses) if n is not None), 0)
        found.append((limit, max(0, used - _cached(folder))))
    return min(found, default=(None, 0))


def _cached(folder: Path) -> int:
    """Bytes of files in memory, which the kernel drops where memory is needed."""
    try:
        lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    fields = dict(line.split()[:2] for line in lines if len(line.split()) >= 2)
    return int(fields.get("inactive_file", fields.get("total_inactive_file", "0")))


def _tasks_left(root: Path) -> int | None:
    """Processes and threads that may still start; None without a limit."""
    left = []
    for folder in _own_groups(root, "pids"):
        most, now = _number(folder / "pids.max"), _number(folder / "pids.current")
        if most is not None and now is not None:
            left.append(max(0, most - now))
    # For root the limit of a user's processes does not hold.
    most = _limit(resource.RLIMIT_NPROC)
    if most is not None and os.geteuid() != 0:
        left.append(max(0, most - _own_threads()))
    return min(left, default=None)


def _own_threads() -> int:
    """Threads of all processes of this user."""
    uid, total = os.getuid(), 0
    for each in psutil.process_iter(["uids", "num_threads"]):
        uids = each.info["uids"]
        total += (each.info["num_threads"] or 0) if uids and uids.real == uid else 0
    return total
