"""How much processor time the control groups of this process allow, versions 1 and 2.

    /proc/self/cgroup               the files, from the process's own group up to the root
      0::/user/job7             ->  /sys/fs/cgroup/user/job7/cpu.max              "150000 100000"
      4:cpu,cpuacct:/user/job7  ->  /sys/fs/cgroup/cpu,cpuacct/user/job7/cpu.cfs_*_us

A group is bound by those above it, so the smallest limit counts. In a container the path may be one
of the world outside; then what is mounted is the process's own group.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def cpu_quota(own: str, mounts: Path) -> float | None:
    """CPUs of time that the groups allow; None without a limit.

    Args:
        own: the text of /proc/self/cgroup.
        mounts: where control groups are mounted, /sys/fs/cgroup.
    """
    groups = group_folders(own, mounts, "cpu")
    limits = [limit for folder in groups if (limit := _limit(folder)) is not None]
    return min(limits, default=None)


def group_folders(own: str, mounts: Path, controller: str) -> list[Path]:
    """The folders that may have limits of a controller, such as cpu, memory or pids.

    Args:
        own: the text of /proc/self/cgroup.
        mounts: where control groups are mounted, /sys/fs/cgroup.
    """
    return [f for line in own.splitlines() for f in _groups(line, mounts, controller)]


def _groups(line: str, mounts: Path, controller: str) -> Iterator[Path]:
    """The folders that may say something about a controller, by one line of the file."""
    _, controllers, path = (*line.split(":", 2), "", "")[:3]
    # Version 2 has one line without controllers; `unified` is its mount in hybrid setups.
    if not controllers:
        roots = [mounts, mounts / "unified"]
    elif controller in controllers.split(","):
        roots = [mounts / controllers, mounts / controller]
    else:
        return
    own = Path(path.lstrip("/"))
    # Upwards to the root: a limit of any group above binds this process as well.
    for root in roots:
        yield root / own
        yield from (root / above for above in own.parents)


def _limit(folder: Path) -> float | None:
    for read in (_version_2, _version_1):
        try:
            limit, period = read(folder)
            return int(limit) / int(period) if int(limit) > 0 else None
        except (OSError, ValueError, ZeroDivisionError):
            continue  # the other version, or a group without the file: the root has none
    return None


def _version_2(folder: Path) -> tuple[str, str]:
    limit, period = (folder / "cpu.max").read_text().split()
    return ("0" if limit == "max" else limit), period


def _version_1(folder: Path) -> tuple[str, str]:
    """`-1` stands for no limit."""
    limit = (folder / "cpu.cfs_quota_us").read_text()
    return limit, (folder / "cpu.cfs_period_us").read_text()
