"""Who holds a run folder: a process, on which machine, and for which job."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from bundlerun.launcher.process import boot_id, started_at

TORCHRUN = "torchrun"
"""How a run was started whose ranks take turns in holding the folder for their agent."""

_ALONE = "alone"


def job_of_one_node() -> str:
    """A name for a job that no other node has a part in."""
    return f"{_ALONE} {os.urandom(8).hex()}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who claims a run folder.

    job: the same on all nodes of a job, and no other job's. how: what was started. machine: this
    start of it, and the space of its process ids. started: of the process, clock ticks since then.
    since: for people, by that machine's clock.
    """

    job: str
    how: str
    node: str
    machine: str
    pid: int
    started: int
    since: str

    @classmethod
    def of_process(cls, job: str, how: str, *, node: str = "", pid: int | None = None) -> Holder:
        """A process of this machine, which exists as long as the run; by default this one."""
        pid = os.getpid() if pid is None else pid
        return cls(
            job=job,
            how=how,
            node=node or socket.gethostname(),
            machine=this_machine(),
            pid=pid,
            started=started_at(pid) or 0,
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        )

    @property
    def is_alone(self) -> bool:
        """Whether no other node has a part in its job."""
        return self.job.startswith(f"{_ALONE} ")

    @property
    def is_here(self) -> bool:
        """Whether its process can be seen from here."""
        return self.machine == this_machine()

    @property
    def lives_here(self) -> bool:
        """Whether its process is there, for one that can be seen."""
        return started_at(self.pid) == self.started

    def is_same_process(self, other: Holder) -> bool:
        """Whether both are one process, whatever its job is called now."""
        return self._process == other._process

    @property
    def _process(self) -> tuple[str, int, int]:
        return self.machine, self.pid, self.started

    @property
    def age_s(self) -> float:
        """Seconds since its process began; of this machine."""
        ticks = os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / ticks

    def __str__(self) -> str:
        return f"process {self.pid} on node {self.node} ({self.how}, since {self.since})"


def process_tag(pid: int) -> str:
    """A short text that no other process of this machine has, while it is up."""
    return f"{started_at(pid) or 0}-{pid}"


def this_machine() -> str:
    """Which one it is, since when it is up, and the space of process ids; no other has the same."""
    return f"{boot_id()} {Path('/proc/self/ns/pid').readlink()}"
