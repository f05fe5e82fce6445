"""Reads which versions are installed, without importing torch."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from bundlerun.launcher.doctor.versions import VersionFacts
from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.layout.machine.gpus import count_gpus

_COMPAT = ("usr/local/cuda/compat/libcuda.so.1", "usr/lib/cuda-compat/libcuda.so.1")


def read_versions(
    environ: Mapping[str, str], root: Path = Path("/"), *, num_gpus: int | None = None
) -> VersionFacts:
    """What is installed here.

    Args:
        environ: of the ranks.
        root: of the file system.
        num_gpus: that ranks would see; None counts them.
    """
    torch = values_of_module("torch")
    if num_gpus is None:
        num_gpus = _count_gpus(environ, root)
    return VersionFacts(
        python=tuple(sys.version_info[:3]),
        torch=torch.get("__version__", "") or _version("torch"),
        cuda=torch.get("cuda", ""),
        hip=torch.get("hip", ""),
        torchvision=values_of_module("torchvision").get("__version__", "")
        or _version("torchvision"),
        torchvision_needs=_needs_torch(),
        nccl=_nccl() if num_gpus else "",  # looking for it takes longer than all the rest
        driver=driver_version(root),
        has_compat=any((root / name).exists() for name in _COMPAT)
        or "compat" in environ.get("LD_LIBRARY_PATH", ""),
        num_gpus=num_gpus,
        num_nvidia=sum(
            bool(re.fullmatch(r"nvidia\d+", each.name)) for each in (root / "dev").glob("nvidia*")
        ),
    )


def _count_gpus(environ: Mapping[str, str], root: Path) -> int:
    try:
        return count_gpus(environ, root)
    except NodeError:  # a variable names a GPU that is not there; said by what looks at devices
        return 0


def values_of_module(package: str) -> dict[str, str]:
    """The texts that `package`/version.py sets; nothing is imported."""
    try:
        found = find_spec(package)
    except (ImportError, ValueError):
        return {}
    if found is None or found.origin is None:
        return {}
    try:
        tree = ast.parse((Path(found.origin).parent / "version.py").read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return {}
    values: dict[str, str] = {}
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        value = getattr(node, "value", None)
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            values |= {each.id: value.value for each in targets if isinstance(each, ast.Name)}
    return values


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _needs_torch() -> str:
    try:
        needs = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return ""
    found = (re.fullmatch(r"torch\s*\(?([<>=!~][^;)]*)\)?\s*(;.*)?", each) for each in needs)
    return next((match[1].strip() for match in found if match), "")


def _nccl() -> str:
    """The version of the package of NCCL that torch has come with."""
    for major in range(20, 10, -1):
        if version := _version(f"nvidia-nccl-cu{major}"):
            return version
    return ""


def driver_version(root: Path = Path("/")) -> str:
    """The version of NVIDIA's kernel module; empty where there is none."""
    try:
        return (root / "sys/module/nvidia/version").read_text(encoding="utf-8").strip()
    except OSError:
        pass
    try:
        text = (root / "proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return ""
    match = re.search(r"\s(\d{3,}\.\d+(?:\.\d+)?)\s", text)
    return match[1] if match else ""
