"""Examines one node: the quick part reads, the whole also asks torch and tries disks."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.doctor.asked import check_asked, check_gpu_memory
from bundlerun.launcher.doctor.data import check_data
from bundlerun.launcher.doctor.devices import check_devices
from bundlerun.launcher.doctor.findings import Finding
from bundlerun.launcher.doctor.folder import check_folder
from bundlerun.launcher.doctor.machine import check_machine
from bundlerun.launcher.doctor.network import check_network
from bundlerun.launcher.doctor.read.ask_torch import Question
from bundlerun.launcher.doctor.read.data import DECODER, is_read, read_data
from bundlerun.launcher.doctor.read.devices import read_devices
from bundlerun.launcher.doctor.read.folder import try_folder
from bundlerun.launcher.doctor.read.machine import read_machine
from bundlerun.launcher.doctor.read.network import read_network
from bundlerun.launcher.doctor.read.versions import read_versions
from bundlerun.launcher.doctor.versions import check_versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a user asks about a node.

    data: empty or `synthetic` where there is none to look at.
    run_dir: the run folder; need not exist.
    devices: the option.
    is_quick: nothing that takes longer than a moment.
    address: at which peers reach this node; empty on a node that is alone.
    """

    run_dir: Path
    data: str = ""
    devices: DeviceChoice = "auto"
    is_quick: bool = False
    address: str = ""


def examine(wanted: Wanted, environ: Mapping[str, str]) -> list[Finding]:
    """All findings about this node; in the whole form takes a few seconds."""
    with ExitStack() as stack:
        # torch's import takes the longest: it goes on while other things are read.
        question = None if wanted.is_quick else stack.enter_context(_question(wanted.data))
        versions = read_versions(environ)
        devices = read_devices(environ, wanted.devices, is_quick=wanted.is_quick)
        found = [
            *check_versions(versions),
            *check_machine(read_machine()),
            *check_devices(devices),
            *check_network(read_network(environ, wanted.address)),
            *check_folder(try_folder(wanted.run_dir)),
        ]
        if question is not None:
            asked = question.answer()
            num_gpus = 0 if wanted.devices == "cpu" else devices.num_gpus
            found += [*check_asked(asked, num_gpus), *check_gpu_memory(asked)]
            # After torch has been imported: both would slow each other down.
            if is_read(wanted.data):
                found += check_data(read_data(wanted.data, question))
    return found


def _question(data: str) -> Question:
    """One process has torch for all that needs it: its import takes the longest."""
    return Question(DECODER) if is_read(data) else Question()
