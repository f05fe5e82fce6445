"""Pure: which versions of Python, torch, torchvision, CUDA, driver and NCCL fit together."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning
from bundlerun.launcher.preflight import OLDEST_TORCH

OLDEST_PYTHON = (3, 11)
FIRST_FREE_TORCHVISION = 29
"""From torchvision 0.29 on its binary takes later versions of torch; its package says from which.
Before that, 0.N goes with torch 2.(N-15) and no other (the table of torchvision's README)."""
_BEHIND = 15
OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""Of NVIDIA, by major version of CUDA (its page on minor version compatibility)."""

Version = tuple[int, ...]
_COMPARED = {
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "<=": lambda a, b: a <= b,
    "!=": lambda a, b: a != b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionFacts:
    """What is installed; a text is empty where there is none.

    python: of this process.
    torch: with the tag of its build, such as 2.14.1+cu130; cuda, hip: what it is built with.
    torchvision: likewise. torchvision_needs: what its package requires of torch, `>=2.14.0`.
    nccl: of the package that came with torch.
    driver: of NVIDIA's kernel module; has_compat: a newer libcuda for older drivers is there.
    num_gpus: that ranks would see; num_nvidia: of them or hidden, NVIDIA's devices of the node.
    """

    python: Version
    torch: str
    cuda: str = ""
    hip: str = ""
    torchvision: str = ""
    torchvision_needs: str = ""
    nccl: str = ""
    driver: str = ""
    has_compat: bool = False
    num_gpus: int = 0
    num_nvidia: int = 0


def version_of(version: str) -> Version:
    """The numbers of a version: `2.14.1+cu130` as (2, 14, 1); empty where there are none."""
    match = re.match(r"\s*(\d+(?:\.\d+)*)", version)
    return tuple(int(part) for part in match[1].split(".")) if match else ()


def meets(version: str, needs: str) -> bool:
    """Whether a version is within a requirement such as `>=2.14.0,<3`; unknown forms are passed."""
    have = version_of(version)
    for part in needs.split(","):
        match = re.fullmatch(r"\s*(>=|==|<=|!=|>|<)\s*([\d.]+)\s*", part)
        if not match or not have:
            continue
        wanted = version_of(match[2])
        size = max(len(have), len(wanted))
        padded = [each + (0,) * (size - len(each)) for each in (have, wanted)]
        if not _COMPARED[match[1]](*padded):
            return False
    return True


def check_versions(facts: VersionFacts) -> list[Finding]:
    """All of it, in order."""
    return [
        check_python(facts.python),
        check_torch(facts),
        *check_torchvision(facts),
        *check_cuda(facts),
        *check_nccl(facts),
    ]


def check_python(python: Version) -> Finding:
    """Python itself."""
    text = ".".join(map(str, python))
    if python[:2] < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        return error("python", f"{text} is too old", f"use Python {wanted} or newer")
    return ok("python", text)


def check_torch(facts: VersionFacts) -> Finding:
    """Torch itself."""
    wanted = ".".join(map(str, OLDEST_TORCH))
    install = f"pip install 'torch>={wanted}' torchvision"
    if not facts.torch:
        return error("torch", "not installed", install)
    if version_of(facts.torch)[:2] < OLDEST_TORCH:
        return error("torch", f"{facts.torch} is too old", install)
    built = f"CUDA {facts.cuda}" if facts.cuda else f"ROCm {facts.hip}" if facts.hip else ""
    return ok(
        "torch", f"{facts.torch}, built with {built}" if built else f"{facts.torch}, CPU only"
    )


def check_torchvision(facts: VersionFacts) -> Iterator[Finding]:
    """Whether torchvision goes with torch."""
    subject, have = "torchvision", version_of(facts.torchvision)
    if not facts.torch:
        return
    if not have:
        yield error(subject, "not installed", f"pip install torchvision 'torch=={facts.torch}'")
        return
    mend = "pip install torch and torchvision in one command, so that they go together"
    fits = meets(facts.torch, facts.torchvision_needs)
    if have[0] == 0 and len(have) > 1 and have[1] < FIRST_FREE_TORCHVISION:
        fits = version_of(facts.torch)[:2] == (2, have[1] - _BEHIND)
    if not fits:
        pair = (
            f"needs torch {facts.torchvision_needs}"
            if have[:2] >= (0, FIRST_FREE_TORCHVISION)
            else f"goes with torch 2.{have[1] - _BEHIND}"
        )
        yield error(subject, f"{facts.torchvision} {pair}, and torch is {facts.torch}", mend)
        return
    ours, theirs = (_cuda_tag(each) for each in (facts.torch, facts.torchvision))
    if ours and theirs and ours[:-1] != theirs[:-1]:
        text = f"{facts.torchvision} is built for another CUDA than torch {facts.torch}"
        yield error(subject, text, mend)
    elif theirs and not facts.cuda and not facts.hip:
        # Its operators are in a library that needs torch's CUDA; the models work without them.
        text = f"{facts.torchvision} is built with CUDA, torch is not: it has no nms for detection"
        yield warning(subject, text, mend)
    else:
        yield ok(subject, facts.torchvision)


def _cuda_tag(version: str) -> str:
    """`cu130` of `2.14.1+cu130`; empty where there is none."""
    match = re.search(r"\+cu(\d+)", version)
    return match[1] if match else ""


def check_cuda(facts: VersionFacts) -> Iterator[Finding]:
    """Whether torch can use the devices with the driver that is there."""
    subject = "driver"
    if facts.num_gpus and facts.torch and not facts.cuda and not facts.hip:
        text = f"this node has {facts.num_gpus} GPUs, and torch {facts.torch} can use none"
        yield error("CUDA", text, "install a torch that is built for them, or use --devices cpu")
        return
    if not facts.num_nvidia or not facts.cuda:
        return
    if not facts.driver:
        text = f"{facts.num_nvidia} GPUs, and the version of their driver cannot be read"
        yield warning(subject, text, "nvidia-smi says more; in a container, start it with the GPUs")
        return
    major = version_of(facts.cuda)[0]
    oldest = OLDEST_DRIVER.get(major, 0)
    if version_of(facts.driver)[0] >= oldest:
        yield ok(subject, f"{facts.driver}, enough for CUDA {facts.cuda}")
        return
    text = f"{facts.driver} is older than {oldest}, which CUDA {major} needs"
    mend = f"a driver from {oldest} on, or a torch for an older CUDA; or use --devices cpu"
    # NVIDIA's package of a newer libcuda lets some GPUs of data centres work all the same.
    yield (warning if facts.has_compat else error)(subject, text, mend)


def check_nccl(facts: VersionFacts) -> Iterator[Finding]:
    """NCCL, for those who have GPUs."""
    if facts.num_gpus and facts.nccl:
        yield ok("NCCL", facts.nccl)
