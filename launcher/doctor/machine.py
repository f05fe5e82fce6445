"""Pure: cores, memory, shared memory and limits of one node."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.agent.limits import FEW_FILES, files_to_ask_for
from bundlerun.launcher.console import noun_for
from bundlerun.launcher.doctor.findings import Finding, error, ok, warning

GIB = 1 << 30
LITTLE_MEMORY = 2 * GIB
LITTLE_SHARED = GIB
"""Of /dev/shm: snapshots, tensors of loading processes and buffers between ranks lie there."""
NO_SHARED = 1 << 20
"""Not enough for the semaphores of torch's agent."""
NO_FILES = 64
LITTLE_TEMPORARY = GIB // 8
FEW_TASKS = 64
MANY_PINNED = 64 << 20
BUSY = 0.5
"""Share of the cores that other work takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """One node; sizes in bytes, None where there is no limit or it is not known.

    cores: physical ones that this process may use, by NUMA node; threads: logical CPUs of them.
    all_threads: of the machine. quota: CPUs of time that a control group allows.
    load: processes that wanted a CPU in the last minute.
    memory_limit: of the control groups, with memory_used of what counts there.
    shared_total, shared_free: of /dev/shm; None without one.
    open_files: soft and hard limit, -1 for none. tasks_left: processes and threads that may start.
    pinned: memory that may be locked. has_rdma: whether there is a card that wants that.
    temporary: the folder; temporary_error: why it cannot be written, else nothing.
    """

    cores: tuple[int, ...]
    threads: int
    all_threads: int
    quota: float | None = None
    load: float = 0.0
    memory_total: int = 0
    memory_available: int = 0
    memory_limit: int | None = None
    memory_used: int = 0
    shared_total: int | None = None
    shared_free: int = 0
    open_files: tuple[int, int] = (1024, -1)
    tasks_left: int | None = None
    pinned: int | None = None
    has_rdma: bool = False
    temporary: str = "/tmp"
    temporary_free: int = 0
    temporary_error: str = ""


def check_machine(facts: MachineFacts) -> list[Finding]:
    """All of it, in order."""
    return [
        *check_cores(facts),
        check_memory(facts),
        check_shared_memory(facts),
        check_open_files(facts),
        *check_tasks(facts),
        *check_pinned(facts),
        check_temporary(facts),
    ]


def check_cores(facts: MachineFacts) -> Iterator[Finding]:
    """How much may be computed here, and how busy it is."""
    subject, num = "cores", sum(facts.cores)
    where = f" on {len(facts.cores)} NUMA nodes" if len(facts.cores) > 1 else ""
    text = f"{num} {noun_for(num, 'core')}{where}, {facts.threads} threads"
    if facts.threads < facts.all_threads:
        text += f" of the machine's {facts.all_threads}"
    if facts.quota is not None:
        text += f", {facts.quota:g} CPUs of time by its control group"
    if facts.quota is not None and facts.quota < 1:
        yield warning(subject, text, "ask for a whole CPU at least (docker --cpus, limits.cpu)")
    else:
        yield ok(subject, text)
    if facts.threads and facts.load > BUSY * facts.all_threads:
        text = f"{facts.load:.1f} threads wanted the {facts.all_threads} CPUs in the last minute"
        yield warning(
            "load", text, "end it, or expect steps that take longer; top shows what it is"
        )


def check_memory(facts: MachineFacts) -> Finding:
    """What ranks may allocate."""
    free, text = facts.memory_available, f"{size(facts.memory_available)} free"
    text += f" of {size(facts.memory_total)}"
    if facts.memory_limit is not None and facts.memory_limit < facts.memory_total:
        left = max(0, facts.memory_limit - facts.memory_used)
        free = min(free, left)
        text += f"; the control group allows {size(facts.memory_limit)}, {size(left)} of it free"
    if free < LITTLE_MEMORY:
        return warning(
            "memory", text, "a rank with torch takes 0.5 GiB and more: end other work, or ask for "
            "more memory",
        )  # fmt: skip
    return ok("memory", text)


def check_shared_memory(facts: MachineFacts) -> Finding:
    """Where processes of a node share what they have."""
    subject = "/dev/shm"
    mend = "docker run --shm-size=8g (or --ipc=host); in Kubernetes an emptyDir of medium Memory"
    if facts.shared_total is None:
        return error(subject, "is not there or cannot be written", mend)
    text = f"{size(facts.shared_free)} free of {size(facts.shared_total)}"
    if facts.shared_free < NO_SHARED:
        return error(subject, f"{text}: full", f"clear it, or {mend}")
    if facts.shared_free < LITTLE_SHARED:
        return warning(subject, text, f"{mend}; snapshots go elsewhere with --snapshot-dir")
    return ok(subject, text)


def check_open_files(facts: MachineFacts) -> Finding:
    """How many files and sockets a process may open."""
    soft, hard = facts.open_files
    most = files_to_ask_for(soft, hard)
    text = "no limit" if most < 0 else f"{most}" + (f" (raised from {soft})" * (most != soft))
    mend = f"ulimit -n {2 * FEW_FILES} before the start, or LimitNOFILE of the service"
    if 0 <= most < NO_FILES:
        return error("open files", f"a process may open {text}", mend)
    if 0 <= most < FEW_FILES:
        return warning("open files", f"a process may open {text}, which may be too few", mend)
    return ok("open files", text)


def check_tasks(facts: MachineFacts) -> Iterator[Finding]:
    """How many processes and threads may start."""
    if facts.tasks_left is not None and facts.tasks_left < FEW_TASKS * max(1, facts.threads):
        text = f"{facts.tasks_left} more processes and threads may start"
        make = error if facts.tasks_left < FEW_TASKS else warning
        yield make("processes", text, "raise ulimit -u, or the container's limit (--pids-limit)")


def check_pinned(facts: MachineFacts) -> Iterator[Finding]:
    """Memory that cards read by themselves."""
    if facts.has_rdma and facts.pinned is not None and facts.pinned < MANY_PINNED:
        text = f"{size(facts.pinned)} may be locked, and this node has an InfiniBand or RoCE card"
        yield warning("locked memory", text, "ulimit -l unlimited, or NCCL may not use that card")


def check_temporary(facts: MachineFacts) -> Finding:
    """The folder for locks and the fork server."""
    subject = "temporary folder"
    if facts.temporary_error:
        text = f"{facts.temporary!r} cannot be written: {facts.temporary_error}"
        return error(subject, text, "set TMPDIR to a folder of this node that can")
    text = f"{facts.temporary}, {size(facts.temporary_free)} free"
    if facts.temporary_free < LITTLE_TEMPORARY:
        return warning(subject, text, "clear it, or set TMPDIR")
    return ok(subject, text)


def size(num_bytes: float) -> str:
    """A size for people."""
    for unit, scale in (("TiB", 1 << 40), ("GiB", GIB), ("MiB", 1 << 20)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:.1f} {unit}"
    return f"{num_bytes / 1024:.0f} KiB"
