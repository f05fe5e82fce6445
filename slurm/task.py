"""Pure: what Slurm says of this process, as one task of a job step.

SLURM_STEP_NODELIST=n[1-4]                   the nodes; the first three can keep the rendezvous
SLURM_JOB_ID, _STEP_ID, _RESTART_COUNT       --rdzv-id slurm-7.0-r2, and the port
SLURMD_NODENAME                              this node
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError

NUM_CANDIDATES = 3
"""Nodes that can keep the rendezvous: enough for any number of them."""
FIRST_PORT, NUM_PORTS = 20000, 12000
"""Below 32768, where Linux begins to hand out ports by itself."""
STEPS_PER_JOB = 16
"""Job steps with ports of their own, of one job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SlurmTask:
    """What this process is as a task of a job step.

    Args:
        restarts: how often the job has been requeued.
        nodes: names of the step's nodes, in Slurm's order, the same on all.
        node: this one.
        num_gpus: that Slurm gave this node; None where the job asked for none.
        num_tasks: of the step, on all of its nodes.
    """

    job_id: int
    step_id: int
    restarts: int
    nodes: tuple[str, ...]
    node: str
    local_id: int
    num_gpus: int | None
    num_tasks: int = 1

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> SlurmTask | None:
        """Reads Slurm's variables; None for a process that `srun` did not start.

        Raises:
            ConfigError: a variable is not what Slurm writes.
        """
        # A batch script has SLURM_JOB_ID as well; both of these only a task of srun has.
        if "SLURM_STEP_NODELIST" not in environ or "SLURM_PROCID" not in environ:
            return None
        nodes = expand_hostlist(environ["SLURM_STEP_NODELIST"])
        index = _number(environ, "SLURM_NODEID", 0)
        gpus = environ.get("SLURM_GPUS_ON_NODE", "")
        return cls(
            job_id=_number(environ, "SLURM_JOB_ID"),
            step_id=_number(environ, "SLURM_STEP_ID", 0),
            restarts=_number(environ, "SLURM_RESTART_COUNT", 0),
            nodes=nodes,
            # The name in Slurm's list, which the host name need not be.
            node=environ.get("SLURMD_NODENAME") or nodes[min(index, len(nodes) - 1)],
            local_id=_number(environ, "SLURM_LOCALID", 0),
            num_gpus=int(gpus) if gpus.isdecimal() else None,
            num_tasks=_number(environ, "SLURM_STEP_NUM_TASKS", len(nodes)),
        )

    @property
    def is_one_task(self) -> bool:
        """Whether the step may be a shell in which people type one run after another."""
        return len(self.nodes) == 1 and self.num_tasks == 1

    @property
    def rdzv_id(self) -> str:
        """A name that no other step, and no other start of this job, has."""
        return f"slurm-{self.job_id}.{self.step_id}-r{self.restarts}"

    @property
    def port(self) -> int:
        """Where candidates listen: jobs that share a node have different ones."""
        # All nodes work it out alike, without a word. The restarts are no part of it: starts of a
        # job come one after the other.
        return FIRST_PORT + (self.job_id * STEPS_PER_JOB + self.step_id) % NUM_PORTS

    @property
    def candidates(self) -> tuple[str, ...]:
        """The nodes that can keep the rendezvous."""
        return self.nodes[:NUM_CANDIDATES]


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} is not the number that Slurm writes there")
    return int(text)


def expand_hostlist(text: str) -> tuple[str, ...]:
    """Reads Slurm's `n[01-03,7],login` as (n01, n02, n03, n7, login).

    Raises:
        ConfigError: it is written otherwise.
    """
    names = tuple(name for part in _split(text) for name in _expand(part))
    if not names:
        raise ConfigError(f"node list {text!r} names no node")
    return names


def _split(text: str) -> list[str]:
    """Cuts at the commas outside brackets."""
    return [part for part in re.split(r",(?![^\[]*\])", text.strip()) if part]


def _expand(part: str) -> Iterator[str]:
    match = re.fullmatch(r"([^\[\]]*)\[([\d,-]+)\](.*)", part)
    if not match:
        if "[" in part or "]" in part:
            raise ConfigError(f"node list {part!r} is not written as Slurm does, n[1-3,7]")
        yield part
        return
    head, ranges, tail = match.groups()
    # Several brackets multiply, r[1-2]n[1-2].
    rests = list(_expand(tail)) if tail else [""]
    for each in ranges.split(","):
        first, _, last = each.partition("-")
        if not first or not (last or "0").isdecimal():
            raise ConfigError(f"node list {part!r} is not written as Slurm does, n[1-3,7]")
        for number in range(int(first), int(last or first) + 1):
            for rest in rests:
                # Slurm keeps leading zeros: the width is that of the first number.
                yield f"{head}{number:0{len(first)}d}{rest}"
