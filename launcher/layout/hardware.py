"""What one node has, and how its ranks share it: devices, cores, NUMA nodes, memory.

rank_layout, four ranks on two NUMA nodes of four cores

  NUMA node 0      NUMA node 1
  c0 c1 | c2 c3    c4 c5 | c6 c7
  rank 0  rank 1   rank 2  rank 3      pinned to two cores each

How many threads a rank computes with is another matter: `num_threads`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final, Literal, TypeVar

import psutil

from bundlerun.launcher.choices import DeviceChoice, DeviceKind
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.machine.cgroups import cpu_quota
from bundlerun.launcher.layout.machine.gpu_places import cores_by_gpu, gpu_numa_nodes
from bundlerun.launcher.layout.machine.gpus import count_gpus
from bundlerun.launcher.layout.machine.pinning import claim_cpus
from bundlerun.launcher.layout.shape import Shape

THREADS_VARIABLE: Final = "OMP_NUM_THREADS"
ThreadsFrom = Literal["--threads", "OMP_NUM_THREADS", "as torchrun", "free cores"]
"""Who says how many threads a rank computes with."""
T = TypeVar("T")

Core = tuple[int, ...]
"""The logical CPUs of one physical core."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpus:
    """What this process may compute on."""

    numa_nodes: tuple[tuple[Core, ...], ...]
    """Allowed cores by NUMA node; a node without an allowed core is left out."""
    quota: float | None = None
    """CPU time that a control group allows, in CPUs; None without a limit."""
    numbers: tuple[int, ...] = ()
    """The kernel's numbers of the NUMA nodes; empty where it has none."""
    distances: tuple[tuple[int, ...], ...] = ()
    """From each NUMA node to each, as the kernel gives them: 10 is near."""

    @property
    def num_cores(self) -> int:
        """Cores that can be busy at once."""
        cores = sum(len(node) for node in self.numa_nodes)
        return cores if self.quota is None else max(1, min(cores, math.floor(self.quota)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLayout:
    """What one rank computes with.

    threads: compute threads. threads_from: who decided their number.
    cores: its share of the node's.
    cpus: the logical CPUs that it is pinned to; empty: not pinned.
    """

    threads: int
    threads_from: ThreadsFrom
    cores: int
    cpus: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """The devices of one node, and what they are."""

    kind: DeviceKind
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One node as the launcher sees it."""

    num_gpus: int
    cpus: Cpus
    gpu_nodes: tuple[int, ...] = ()
    """See `gpu_numa_nodes`."""


def rank_layout(
    local_rank: int,
    local_world_size: int,
    cpus: Cpus,
    *,
    threads: int = 0,
    affinity: bool = True,
    environ: Mapping[str, str] | None = None,
    gpu_nodes: Sequence[int] = (),
) -> RankLayout:
    """The share of one local rank.

    Ranks get the cores that are near their GPUs. Where that is not known, whole NUMA nodes while
    there are enough of them, else equal parts of one. With fewer cores than ranks, or under a CPU
    quota (which says how much, not where), nobody is pinned.

    Args:
        threads: the option; see `num_threads`.
        affinity: pin the rank to its share.
        environ: of the rank.
        gpu_nodes: of each GPU that the ranks of this node see, the kernel's number of its NUMA
            node; empty on the CPU, and where that is not known.
    """
    wanted = num_threads(threads, environ or {}, local_world_size, cpus.num_cores)
    layout = RankLayout(
        threads=wanted[0],
        threads_from=wanted[1],
        cores=max(1, cpus.num_cores // local_world_size),
    )
    if cpus.quota is not None or cpus.num_cores < local_world_size:
        return layout
    shares = _shares_near_gpus(cpus, gpu_nodes, local_world_size)
    cores = (shares or _core_shares(cpus.numa_nodes, local_world_size))[local_rank]
    logical = tuple(sorted(cpu for core in cores for cpu in core))
    return replace(layout, cores=len(cores), cpus=logical if affinity else ())


def rank_layouts(
    local_world_size: int,
    cpus: Cpus,
    *,
    threads: int = 0,
    affinity: bool = True,
    environ: Mapping[str, str] | None = None,
    gpu_nodes: Sequence[int] = (),
) -> tuple[RankLayout, ...]:
    """The share of each local rank; arguments as for `rank_layout`."""
    return tuple(
        rank_layout(
            local_rank,
            local_world_size,
            cpus,
            threads=threads,
            affinity=affinity,
            environ=environ,
            gpu_nodes=gpu_nodes,
        )
        for local_rank in range(local_world_size)
    )


def num_threads(
    option: int, environ: Mapping[str, str], local_world_size: int, num_cores: int
) -> tuple[int, ThreadsFrom]:
    """How many threads a rank computes with, and who says so.

    Threads that wait for each other at the end of each operation are many times slower where there
    are more of them than free cores. So several ranks have one each unless somebody says otherwise,
    as under torchrun; a rank that is alone has all cores that this process may use.

    Args:
        option: what --threads says; 0 leaves it to the environment.
        environ: whose OMP_NUM_THREADS counts, as torch reads it: MKL_NUM_THREADS does not.
        local_world_size: ranks of this node.
        num_cores: that the ranks of this node may use.
    """
    if option:
        return option, "--threads"
    # OpenMP takes a list, of which the first is for the outermost region, and passes over nonsense.
    text = environ.get(THREADS_VARIABLE, "").split(",")[0].strip()
    if text.isdecimal() and int(text) > 0:
        return int(text), THREADS_VARIABLE
    return (1, "as torchrun") if local_world_size > 1 else (num_cores, "free cores")


def _shares_near_gpus(
    cpus: Cpus, gpu_nodes: Sequence[int], num_ranks: int
) -> Sequence[Sequence[Core]]:
    """The cores of each rank; empty where it is not known which are near its GPU."""
    if not gpu_nodes or not cpus.distances or not set(gpu_nodes) <= set(cpus.numbers):
        return []
    # As many ranks as GPUs, or several on each (`device.accelerator.chosen_device`).
    places = [cpus.numbers.index(gpu_nodes[rank % len(gpu_nodes)]) for rank in range(num_ranks)]
    sizes = [len(node) for node in cpus.numa_nodes]
    return [
        [core for node, start, end in share for core in cpus.numa_nodes[node][start:end]]
        for share in cores_by_gpu(sizes, cpus.distances, places)
    ]


def _core_shares(numa_nodes: Sequence[Sequence[Core]], num_shares: int) -> Sequence[Sequence[Core]]:
    num_nodes = len(numa_nodes)
    if num_shares <= num_nodes:
        parts = _parts(numa_nodes, num_shares)
        return [[core for node in part for core in node] for part in parts]
    shares: list[Sequence[Core]] = []
    for node, ranks in zip(numa_nodes, _parts(range(num_shares), num_nodes), strict=True):
        # A NUMA node with fewer cores than ranks: share out all cores as if it were one node.
        if len(node) < len(ranks):
            return _parts([core for each in numa_nodes for core in each], num_shares)
        shares += _parts(node, len(ranks))
    return shares


def _parts(items: Sequence[T], num_parts: int) -> list[Sequence[T]]:
    """Cuts `items` into consecutive parts whose lengths differ by one at most."""
    ends = [len(items) * part // num_parts for part in range(num_parts + 1)]
    return [items[start:end] for start, end in pairwise(ends)]


def apply_layout(layout: RankLayout) -> bool:
    """Makes this process compute with its share, and with no more.

    Returns:
        False where another job of this user is pinned to its CPUs, so that this rank is not.
    """
    import torch

    torch.set_num_threads(layout.threads)
    if not layout.cpus:
        return True
    if not claim_cpus(layout.cpus):
        return False
    psutil.Process().cpu_affinity(list(layout.cpus))
    return True


def read_cpus(
    *, allowed: Sequence[int] | None = None, sys: Path = Path("/sys"), quota: float | None = None
) -> Cpus:
    """The cores this process may use, by NUMA node.

    Args:
        allowed: logical CPUs; None asks the system for this process's own.
        sys: the root of sysfs.
        quota: CPUs of time that a control group allows; None reads it too where `allowed` is None.
    """
    if allowed is None:
        allowed = psutil.Process().cpu_affinity() or range(psutil.cpu_count() or 1)
        quota = _own_quota(sys) if quota is None else quota
    left = set(allowed)
    nodes: dict[int, tuple[Core, ...]] = {}
    folders = _numa_folders(sys / "devices/system/node")
    for number, folder in folders.items():
        cores = _cores(left.intersection(parse_cpu_list((folder / "cpulist").read_text())), sys)
        left.difference_update(cpu for core in cores for cpu in core)
        if cores:
            nodes[number] = cores
    # CPUs that no NUMA node lists, or all of them where the kernel has no list.
    if left:
        return Cpus(numa_nodes=(*nodes.values(), _cores(left, sys)), quota=quota)
    return Cpus(
        numa_nodes=tuple(nodes.values()),
        quota=quota,
        numbers=tuple(nodes),
        distances=_distances(folders, list(nodes)),
    )


def _numa_folders(folder: Path) -> dict[int, Path]:
    """The folder of each NUMA node that lists its CPUs, by its number, in ascending order."""
    found = {
        int(match[1]): path.parent
        for path in folder.glob("node*/cpulist")
        if (match := re.fullmatch(r"node(\d+)", path.parent.name))
    }
    return {number: found[number] for number in sorted(found)}


def _distances(folders: Mapping[int, Path], numbers: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """From each of those NUMA nodes to each; empty where the kernel does not say."""
    try:
        rows = {n: folders[n].joinpath("distance").read_text().split() for n in numbers}
    except OSError:
        return ()
    # A row has an entry for each NUMA node there is, also for those without CPUs of ours.
    place = {number: index for index, number in enumerate(folders)}
    if any(len(row) != len(folders) for row in rows.values()):
        return ()
    return tuple(tuple(int(rows[n][place[other]]) for other in numbers) for n in numbers)


def _cores(cpus: set[int], sys: Path) -> tuple[Core, ...]:
    """Groups logical CPUs that share a core."""
    siblings: dict[int, list[int]] = {}
    for cpu in sorted(cpus):
        path = sys / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        try:
            first = min(parse_cpu_list(path.read_text()), default=cpu)
        except (OSError, ValueError):
            first = cpu
        siblings.setdefault(first, []).append(cpu)
    return tuple(tuple(core) for core in siblings.values())


def parse_cpu_list(text: str) -> list[int]:
    """Reads the kernel's `0-2,5` as [0, 1, 2, 5]."""
    cpus: list[int] = []
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus


def _own_quota(sys: Path) -> float | None:
    try:
        own = Path("/proc/self/cgroup").read_text()
    except OSError:
        return None
    return cpu_quota(own, sys / "fs/cgroup")


def read_hardware(environ: Mapping[str, str] = os.environ) -> Hardware:
    """What this node has."""
    num_gpus = count_gpus(environ)
    gpu_nodes = gpu_numa_nodes(environ) if num_gpus else ()
    return Hardware(num_gpus=num_gpus, cpus=read_cpus(), gpu_nodes=gpu_nodes)


def default_slots(shape: Shape, num_cores: int) -> int:
    """CPU slots of a node that nobody gave a number for: a core each, at least one bundle."""
    return max(shape.size, shape.usable_devices(num_cores))


def choose_devices(
    hardware: Hardware, shape: Shape, *, kind: DeviceChoice = "auto", slots: int = 0
) -> Devices:
    """The devices that a node's ranks run on.

    Args:
        kind: gpu, cpu, or auto: GPUs where there are any and no slots are asked for.
        slots: CPU slots; 0 takes `default_slots`.

    Raises:
        ConfigError: GPUs are asked for and there are none, or slots together with GPUs.
    """
    if kind == "gpu" and slots:
        raise ConfigError(f"--slots {slots} counts CPU slots; it goes with --devices cpu, not gpu")
    if kind == "gpu" and not hardware.num_gpus:
        raise ConfigError("--devices gpu, but this node shows no GPU; use --devices cpu --slots N")
    if kind == "gpu" or (kind == "auto" and hardware.num_gpus and not slots):
        return Devices(kind="gpu", count=hardware.num_gpus)
    return Devices(kind="cpu", count=slots or default_slots(shape, hardware.cpus.num_cores))
