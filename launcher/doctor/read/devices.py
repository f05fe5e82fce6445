"""Reads the devices of a node; asks nvidia-smi only where there are NVIDIA's and time for it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace

from bundlerun.launcher.choices import DeviceChoice
from bundlerun.launcher.doctor.devices import QUERY, DeviceFacts, parse_gpus, parse_links
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.layout.machine.gpus import count_gpus, without_driver

_LONGEST_ANSWER_S = 15.0


def read_devices(environ: Mapping[str, str], kind: DeviceChoice, *, is_quick: bool) -> DeviceFacts:
    """The devices that ranks of this node would have.

    Args:
        environ: of the ranks.
        kind: the option --devices.
        is_quick: starts no other program.
    """
    if kind == "cpu":
        return DeviceFacts(kind=kind, num_gpus=0)
    try:
        facts = DeviceFacts(kind=kind, num_gpus=count_gpus(environ), cards=tuple(without_driver()))
    except NodeError as exc:
        return DeviceFacts(kind=kind, num_gpus=0, why_not=str(exc))
    if is_quick or not facts.num_gpus or shutil.which("nvidia-smi") is None:
        return facts
    return replace(
        facts,
        gpus=parse_gpus(_ask(f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits")),
        links=parse_links(_ask("topo", "-m")) if facts.num_gpus > 1 else (),
    )


def _ask(*words: str) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", *words], capture_output=True, text=True, timeout=_LONGEST_ANSWER_S
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
