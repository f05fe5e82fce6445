"""What has to be the same on all nodes of a job: the code, torch, Python."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib import metadata

from bundlerun.launcher.agreement.sources import own_digest
from bundlerun.launcher.errors import NodeError


def versions() -> dict[str, str]:
    """The versions on this machine; does not import torch."""
    return {
        "bundlerun": f"{_version('bundlerun')}+{own_digest()}",
        "torch": _version("torch"),
        "torchvision": _version("torchvision"),
        "Python": platform.python_version(),
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "none"


def check_versions(wanted: str, here: Mapping[str, str], *, node: str, first: str) -> None:
    """Raises NodeError where this node has other versions than the job's first node.

    Args:
        wanted: the first node's, JSON.
        node: this node.
        first: the job's first node.
    """
    expected = json.loads(wanted)
    differing = [
        f"{name} is {here.get(name, 'none')} on {node}, {value} on {first}"
        for name, value in expected.items()
        if here.get(name) != value
    ]
    if differing:
        raise NodeError(
            f"node {node!r} cannot take part: {'; '.join(differing)}; install the same on all nodes"
        )
