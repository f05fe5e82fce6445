"""What `bundlerun init` needs to know of this machine."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from bundlerun.launcher.choices import DeviceKind
from bundlerun.launcher.layout.hardware import read_hardware
from bundlerun.launcher.meeting.site import site_job

_SHARED = frozenset(
    ("nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "glusterfs", "fuse.juicefs")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLook:
    """One machine.

    kind: what ranks run on; num_devices: of those, for CPU slots as many as there are cores.
    num_cores: that can be busy at once.
    file_system: of the current folder, empty where it is not known; is_shared: whether other
        machines may see it, too.
    name: of the machine.
    in_job: whether a batch system has started this.
    """

    kind: DeviceKind
    num_devices: int
    num_cores: int
    file_system: str = ""
    is_shared: bool = False
    name: str = "this-node"
    in_job: bool = False


def look_at_machine(environ: Mapping[str, str], folder: Path) -> MachineLook:
    """What this machine has, and the file system that `folder` is on."""
    hardware = read_hardware(environ)
    cores = hardware.cpus.num_cores
    file_system = _file_system(folder)
    return MachineLook(
        kind="gpu" if hardware.num_gpus else "cpu",
        num_devices=hardware.num_gpus or cores,
        num_cores=cores,
        file_system=file_system,
        is_shared=file_system in _SHARED,
        name=socket.gethostname(),
        in_job=site_job(environ) is not None,
    )


def _file_system(folder: Path) -> str:
    try:
        parts = psutil.disk_partitions(all=True)
    except (OSError, ValueError):
        return ""
    there = folder.absolute()
    # The mount that is nearest above the folder; of two at one place the later one is seen.
    found = [part for part in parts if there.is_relative_to(part.mountpoint)]
    return max(found, key=lambda part: len(part.mountpoint)).fstype if found else ""
