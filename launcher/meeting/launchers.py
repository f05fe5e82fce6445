"""Other programs that start processes: what their variables say about this process.

who                          this process         its node             where all meet
torchrun, accelerate, ours   RANK, WORLD_SIZE     LOCAL_*, GROUP_*     MASTER_ADDR, MASTER_PORT
deepspeed                    RANK, WORLD_SIZE     LOCAL_SIZE, CROSS_*  MASTER_*
Ray, Lightning               RANK, WORLD_SIZE     LOCAL_*, NODE_RANK   MASTER_*
Kubeflow's operator          RANK, WORLD_SIZE     PET_NODE_RANK        MASTER_*
Kubeflow's trainer           (for torchrun: PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR, ...)
srun                         SLURM_PROCID, ..     SLURM_LOCALID, ..    by the list of nodes
Open MPI                     OMPI_COMM_WORLD_*    OMPI_.._LOCAL_*      on one node: by its job
MPICH, Intel, MVAPICH,
Horovod, jsrun, Flux         names of their own   names of their own   (MASTER_* by the user)
mp.spawn                     (nothing at all: see `bundlerun.workers.own.process.user_group`)

MASTER_ADDR and MASTER_PORT count first under each. `rank_variables` is the place that reads them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.meeting.site import site_meeting
from bundlerun.launcher.options.endpoints import bracketed

_FIRST_PORT, _NUM_PORTS = 20000, 12000
"""Below 32768, where Linux begins to hand out ports by itself."""

_OTHER_NAMES = {
    "LOCAL_WORLD_SIZE": ("LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS"),
    "GROUP_RANK": ("CROSS_RANK", "NODE_RANK"),
    "GROUP_WORLD_SIZE": ("CROSS_SIZE",),
}
"""What deepspeed, Ray and MPI call torchrun's variables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Names:
    """One launcher's variables. per_node: how it is told to start one process on each node."""

    launcher: str
    rank: str
    size: str
    local_rank: str
    local_size: str
    per_node: str


_OPEN_MPI = _Names(
    launcher="Open MPI",
    rank="OMPI_COMM_WORLD_RANK",
    size="OMPI_COMM_WORLD_SIZE",
    local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
    local_size="OMPI_COMM_WORLD_LOCAL_SIZE",
    per_node="mpirun --map-by ppr:1:node",
)
_SLURM = _Names(
    launcher="srun",
    rank="SLURM_PROCID",
    size="SLURM_STEP_NUM_TASKS",
    local_rank="SLURM_LOCALID",
    local_size="SLURM_STEP_TASKS_PER_NODE",
    per_node="srun --ntasks-per-node=1",
)
_FAMILIES = (
    # Open MPI first: under Slurm its own helpers are a job step, whose variables say less.
    _OPEN_MPI,
    _Names(
        launcher="Horovod",
        rank="HOROVOD_RANK",
        size="HOROVOD_SIZE",
        local_rank="HOROVOD_LOCAL_RANK",
        local_size="HOROVOD_LOCAL_SIZE",
        per_node="horovodrun --hosts A:1,B:1",
    ),
    _Names(
        launcher="jsrun",
        rank="JSM_NAMESPACE_RANK",
        size="JSM_NAMESPACE_SIZE",
        local_rank="JSM_NAMESPACE_LOCAL_RANK",
        local_size="JSM_NAMESPACE_LOCAL_SIZE",
        per_node="jsrun --rs_per_host 1",
    ),
    _Names(
        launcher="MVAPICH",
        rank="MV2_COMM_WORLD_RANK",
        size="MV2_COMM_WORLD_SIZE",
        local_rank="MV2_COMM_WORLD_LOCAL_RANK",
        local_size="MV2_COMM_WORLD_LOCAL_SIZE",
        per_node="mpirun -ppn 1",
    ),
    _SLURM,
    _Names(
        launcher="Flux",
        rank="FLUX_TASK_RANK",
        size="FLUX_JOB_SIZE",
        local_rank="FLUX_TASK_LOCAL_ID",
        local_size="",  # it does not say
        per_node="flux run --tasks-per-node=1",
    ),
    _Names(
        launcher="MPI",
        rank="PMI_RANK",
        size="PMI_SIZE",
        local_rank="MPI_LOCALRANKID",
        local_size="MPI_LOCALNRANKS",
        per_node="mpiexec -ppn 1",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crowd:
    """The processes that a launcher started together, and which of them this one is.

    local_rank, local_size: on this node; size 0 where it is not known.
    """

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    per_node: str


def crowd_of(environ: Mapping[str, str]) -> Crowd | None:
    """The others that were started with this process; None for one that is alone.

    Raises:
        ConfigError: a variable is no number.
    """
    for names in _FAMILIES:
        if names.rank in environ and names.size in environ:
            crowd = Crowd(
                launcher=names.launcher,
                rank=_number(environ, names.rank),
                size=_number(environ, names.size),
                local_rank=_number(environ, names.local_rank, 0),
                local_size=(
                    _tasks_here(environ)
                    if names is _SLURM
                    else _number(environ, names.local_size, 0)
                ),
                per_node=names.per_node,
            )
            return crowd if crowd.size > 1 else None
    return None


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise ConfigError(f"{name}={text!r} in the environment is not a whole number")
    return int(text)


def _tasks_here(environ: Mapping[str, str]) -> int:
    """How many of Slurm's `2(x3),1` are on this node; 0 where it does not say."""
    counts: list[int] = []
    for part in environ.get(_SLURM.local_size, "").split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        counts += [int(match[1])] * int(match[2] or 1) if match else []
    node = _number(environ, "SLURM_NODEID", 0)
    return counts[node] if node < len(counts) else 0


def rank_variables(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment with torchrun's names for what this process is.

    Without RANK in the result it is the only process of its run.

    Raises:
        ConfigError: it is one of several that do not know of each other.
    """
    if "RANK" in environ:
        return {**_renamed(environ), **environ}
    crowd = crowd_of(environ)
    if crowd is None:
        _check_alone(environ)
        return environ
    # rank // local_size is the node only where ranks go node by node.
    meeting = _meeting(environ, crowd) if _is_by_node(crowd) else None
    if meeting is not None:
        return {
            **environ,
            "RANK": str(crowd.rank),
            "WORLD_SIZE": str(crowd.size),
            "LOCAL_RANK": str(crowd.local_rank),
            "LOCAL_WORLD_SIZE": str(crowd.local_size),
            "GROUP_RANK": str(crowd.rank // crowd.local_size),
            "GROUP_WORLD_SIZE": str(crowd.size // crowd.local_size),
            "MASTER_ADDR": meeting[0],
            "MASTER_PORT": meeting[1],
        }
    raise ConfigError(
        f"this is process {crowd.rank} of {crowd.size} that {crowd.launcher} started, and nothing "
        "tells them where to meet, so that each would train alone, all in one run folder; use "
        f"{crowd.per_node} bundlerun run, or torchrun on each node, or give all processes the "
        "same MASTER_ADDR and MASTER_PORT and each node its ranks in order"
    )


def _meeting(environ: Mapping[str, str], crowd: Crowd) -> tuple[str, str] | None:
    """Address and port where the processes of a crowd can meet; None where nobody says."""
    if environ.get("MASTER_ADDR") and environ.get("MASTER_PORT"):
        return environ["MASTER_ADDR"], environ["MASTER_PORT"]
    if crowd.launcher == _SLURM.launcher:
        return site_meeting(environ)
    # Of several nodes it does not say which one has rank 0.
    job = environ.get("PMIX_NAMESPACE")
    if crowd.launcher == _OPEN_MPI.launcher and job and crowd.local_size == crowd.size:
        # Each mpirun has another name, and so, as good as always, another port.
        return "127.0.0.1", str(_FIRST_PORT + zlib.crc32(job.encode()) % _NUM_PORTS)
    return None


def _check_alone(environ: Mapping[str, str]) -> None:
    """Raises ConfigError where others were started with this process, which has no rank."""
    nodes = environ.get("PET_NNODES", "").rpartition(":")[2]
    if nodes.isdecimal() and int(nodes) > 1:
        raise ConfigError(
            f"PET_NNODES={environ['PET_NNODES']} says that several nodes train together, and this "
            "process has no RANK: each would train alone, all in one run folder; start it with "
            "bundlerun run, bundlerun script or torchrun, which read PET_NNODES"
        )
    for name, least in (("WORLD_SIZE", 2), ("LOCAL_WORLD_SIZE", 2), ("LOCAL_RANK", 1)):
        text = environ.get(name, "")
        if text.isdecimal() and int(text) >= least:
            raise ConfigError(
                f"{name}={text} says that this is one of several processes, and RANK is not set: "
                "each would train alone, all in one run folder; start the ranks with bundlerun run "
                f"or torchrun, or set RANK for each, or unset {name} for one process alone"
            )


def _renamed(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    # Kubeflow's RANK is that of the pod: one process in each, unless there are to be more.
    place = environ.get("PET_NODE_RANK"), environ.get("PET_NNODES")
    if place == (environ["RANK"], environ.get("WORLD_SIZE")) and "LOCAL_RANK" not in environ:
        found = {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        found |= {"GROUP_RANK": environ["RANK"], "GROUP_WORLD_SIZE": environ["WORLD_SIZE"]}
    for name, others in _OTHER_NAMES.items():
        value = next((environ[other] for other in others if environ.get(other)), None)
        if value is not None:
            found[name] = value
    sizes = environ.get("WORLD_SIZE", ""), {**found, **environ}.get("LOCAL_WORLD_SIZE", "")
    if all(size.isdecimal() and int(size) for size in sizes):
        # Only an estimate where nodes differ: those that meet count each other.
        found.setdefault("GROUP_WORLD_SIZE", str(divided_up(int(sizes[0]), int(sizes[1]))))
        # All ranks are on this node, so it is the only one.
        if sizes[0] == sizes[1]:
            found.setdefault("GROUP_RANK", "0")
    return found


def _is_by_node(crowd: Crowd) -> bool:
    """Whether the ranks of a node follow each other, equally many on all nodes."""
    return (
        crowd.local_size > 0
        and crowd.size % crowd.local_size == 0
        and crowd.rank % crowd.local_size == crowd.local_rank
    )


def check_one_per_node(environ: Mapping[str, str], max_nodes: int) -> None:
    """Raises ConfigError where `bundlerun run` was started several times as if it were a rank.

    Args:
        max_nodes: what --nnodes says.
    """
    crowd = crowd_of(environ)
    if crowd is None:
        return
    if crowd.local_size > 1 or crowd.local_rank > 0:
        raise ConfigError(
            f"this is process {crowd.rank} of {crowd.size} that {crowd.launcher} started, "
            f"{crowd.local_size or 'several'} on this node; bundlerun run starts the ranks of a "
            f"node itself: use {crowd.per_node} bundlerun run"
        )
    if crowd.size > max_nodes == 1:  # where nodes meet, those too many are spare
        raise ConfigError(
            f"this is process {crowd.rank} of {crowd.size} that {crowd.launcher} started, and "
            f"--nnodes is 1: each would train alone, all in one run folder; give "
            f"--nnodes {crowd.size} --rdzv-endpoint HOST:PORT, or, for as many runs, --standalone "
            "and a --run-dir each"
        )


_PET = "PET_"
_PET_OPTIONS = (
    "nnodes", "nproc_per_node", "standalone", "rdzv_backend", "rdzv_endpoint", "rdzv_id",
    "rdzv_conf", "local_addr", "node_rank", "max_restarts", "monitor_interval", "log_dir",
    "redirects", "tee",
)  # fmt: skip
_PET_MEETING = ("master_addr", "master_port")


def torchrun_variables(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Launch options by name, as torchrun's variables say them: (variable, text).

    Raises:
        ConfigError: one of them stands for an option of torchrun's that is not ours.
    """
    given = {
        name[len(_PET) :].lower(): (name, text)
        for name, text in environ.items()
        if name.startswith(_PET) and text
    }
    for key, (name, text) in given.items():
        if key not in (*_PET_OPTIONS, *_PET_MEETING):
            raise ConfigError(
                f"{name}={text} stands for an option of torchrun that bundlerun run does not have; "
                f"unset {name}, or use torchrun -m bundlerun.workers.train"
            )
    found = {key: each for key, each in given.items() if key in _PET_OPTIONS}
    if "master_addr" in given and "rdzv_endpoint" not in found and "standalone" not in found:
        (name, host), (_, port) = given["master_addr"], given.get("master_port", ("", ""))
        host = bracketed(host)
        found["rdzv_endpoint"] = (name, f"{host}:{port}" if port else host)
    return found
