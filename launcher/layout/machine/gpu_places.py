"""Where the GPUs of this node hang: the NUMA node of each, and the cores that are near it.

    /proc/driver/nvidia/gpus/0000:07:00.0, ...    NVIDIA: addresses, models, UUIDs
    /sys/class/kfd/.../properties                 AMD: domain and location
    /sys/bus/pci/devices/ADDRESS/numa_node        where an address is

CUDA numbers equal GPUs by their addresses, and unlike ones by speed: of those nothing is said,
unless CUDA_DEVICE_ORDER is PCI_BUS_ID.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.layout.machine.gpus import (
    CPU_ONLY_VARIABLE,
    NODE_GPUS_VARIABLE,
    VISIBLE_CUDA,
    is_amd_gpu,
    names_in,
    variable_of_amd,
)

_KFD = "sys/class/kfd/kfd/topology/nodes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as its driver lists it. `address`: on the PCI bus, as DDDD:BB:DD.F."""

    address: str
    model: str = ""
    uuid: str = ""


def gpu_numa_nodes(environ: Mapping[str, str], root: Path = Path("/")) -> tuple[int, ...]:
    """The kernel's number of the NUMA node of each GPU that the ranks of this node see.

    Empty where that is not known of all of them.

    Args:
        environ: of a rank, which may have been left its own GPU only.
        root: of the file system.
    """
    if environ.get(CPU_ONLY_VARIABLE):
        return ()
    found, variable = _nvidia(root), VISIBLE_CUDA
    if found and not _has_known_order(found, environ):
        return ()
    if not found:
        found, variable = _amd(root), variable_of_amd(environ)
    visible = environ.get(NODE_GPUS_VARIABLE, environ.get(variable))
    nodes = [_numa_node(gpu, root) for gpu in _visible(found, visible, environ)]
    return () if None in nodes else tuple(node for node in nodes if node is not None)


def _nvidia(root: Path) -> list[Gpu]:
    """In the order of their addresses."""
    folders = sorted((root / "proc/driver/nvidia/gpus").glob("*"))
    return [_nvidia_gpu(folder) for folder in folders]


def _nvidia_gpu(folder: Path) -> Gpu:
    fields = _fields(folder / "information", ":")
    address = folder.name.lower()
    return Gpu(address=address, model=fields.get("Model", ""), uuid=fields.get("GPU UUID", ""))


def _fields(file: Path, separator: str) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    parts = (line.partition(separator) for line in lines)
    return {name.strip(): value.strip() for name, _, value in parts}


def _has_known_order(gpus: Sequence[Gpu], environ: Mapping[str, str]) -> bool:
    return len({gpu.model for gpu in gpus}) == 1 or (
        environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    )


def _amd(root: Path) -> list[Gpu]:
    """In the order of the driver's nodes."""
    nodes = sorted((root / _KFD).glob("[0-9]*"), key=lambda node: int(node.name))
    return [_amd_gpu(node) for node in nodes if is_amd_gpu(node)]


def _amd_gpu(node: Path) -> Gpu:
    fields = _fields(node / "properties", " ")
    location = int(fields.get("location_id", "0"))
    bus, device, function = location >> 8 & 0xFF, location >> 3 & 0x1F, location & 7
    domain = int(fields.get("domain", "0"))
    return Gpu(address=f"{domain:04x}:{bus:02x}:{device:02x}.{function}")


def _visible(gpus: list[Gpu], visible: str | None, environ: Mapping[str, str]) -> list[Gpu]:
    """Those that a variable names, in its order; empty where its names are not understood."""
    if visible is None:
        return gpus
    names = names_in(visible)
    # Slurm's numbers count in what the job was given, and the driver lists all.
    is_part_of_job = "SLURM_JOB_ID" in environ and len(names) < len(gpus)
    if is_part_of_job and any(name.isdecimal() for name in names):
        return []
    found = [gpu for name in names for gpu in _named(gpus, name)]
    return found if len(found) == len(names) else []


def _named(gpus: Sequence[Gpu], name: str) -> Sequence[Gpu]:
    if name.isdecimal():
        return gpus[int(name) : int(name) + 1]
    return [gpu for gpu in gpus if gpu.uuid.startswith(name)][:1]


def _numa_node(gpu: Gpu, root: Path) -> int | None:
    """The kernel's number; None where it has none, as on a machine with one only."""
    file = root / "sys/bus/pci/devices" / gpu.address / "numa_node"
    try:
        number = int(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return number if number >= 0 else None


def cores_by_gpu(
    sizes: Sequence[int], distances: Sequence[Sequence[int]], places: Sequence[int]
) -> list[list[tuple[int, int, int]]]:
    """Which cores each rank gets, so that they are near its GPU; empty where some would get none.

    A NUMA node without a GPU goes to the nearest one with some; the ranks of one share its cores.

        NUMA nodes    0        1 (GPUs of ranks 0 and 1)    2 (GPU of rank 2)
        cores         a b      c d                          e f
        rank 0: c, a    rank 1: d, b    rank 2: e f

    Args:
        sizes: cores of each NUMA node.
        distances: between NUMA nodes, as the kernel gives them.
        places: the NUMA node of each rank's GPU, as an index into `sizes`.

    Returns:
        For each rank, parts of NUMA nodes: the node, the first core of it, and the one after the
        last.
    """
    groups = _groups(sizes, distances, places)
    shares = []
    for rank, home in enumerate(places):
        mates = [other for other, place in enumerate(places) if place == home]
        mine, num = mates.index(rank), len(mates)
        shares.append(
            [
                (node, sizes[node] * mine // num, sizes[node] * (mine + 1) // num)
                for node in groups[home]
            ]
        )
    has_all = all(any(end > start for _, start, end in share) for share in shares)
    return shares if has_all else []


def _groups(
    sizes: Sequence[int], distances: Sequence[Sequence[int]], places: Sequence[int]
) -> dict[int, list[int]]:
    """The NUMA nodes whose cores go to the GPUs of each one that has some."""
    groups = {home: [home] for home in sorted(set(places))}
    for node in range(len(sizes)):
        if node in groups:
            continue
        # Of several that are as near, the one whose ranks have the fewest cores.
        nearest = min(
            groups,
            key=lambda home: (
                distances[node][home],
                sum(sizes[each] for each in groups[home]) / places.count(home),
                home,
            ),
        )
        groups[nearest].append(node)
    return groups
