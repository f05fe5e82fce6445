"""Pure: what torch itself says in a process of its own, where that is worth its two seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning
from bundlerun.launcher.doctor.machine import size


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedGpu:
    """A GPU as torch sees it. capability: such as 9.0. free, total: bytes of its memory."""

    name: str
    capability: tuple[int, int]
    free: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedTorch:
    """What torch has answered.

    why_not: why it did not, in one line; else nothing.
    seconds: until a process had imported torch and torchvision.
    gpus: those that torch can use. built_for: capabilities that its binary has code for, and
    whether it can be compiled for later ones.
    nccl: the version that torch was linked with. has_nms: whether torchvision's operators load.
    apart: pairs of GPUs that cannot read each other's memory.
    """

    why_not: str = ""
    seconds: float = 0.0
    gpus: tuple[AskedGpu, ...] = ()
    built_for: tuple[str, ...] = ()
    nccl: str = ""
    has_nms: bool = True
    apart: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of_plain(cls, plain: Mapping[str, Any], seconds: float) -> AskedTorch:
        """What `ask_torch` printed.

        Args:
            seconds: that it took.

        Raises:
            KeyError, TypeError, ValueError: it did not.
        """
        gpus = tuple(
            AskedGpu(
                name=str(each["name"]),
                capability=(int(each["capability"][0]), int(each["capability"][1])),
                free=int(each["free"]),
                total=int(each["total"]),
            )
            for each in plain["gpus"]
        )
        return cls(
            seconds=seconds,
            gpus=gpus,
            built_for=tuple(map(str, plain["built_for"])),
            nccl=str(plain["nccl"]),
            has_nms=bool(plain["has_nms"]),
            apart=tuple((int(a), int(b)) for a, b in plain["apart"]),
        )


def check_asked(facts: AskedTorch, num_gpus: int) -> Iterator[Finding]:
    """What torch's answer means.

    Args:
        num_gpus: that ranks of this node are to use.
    """
    subject = "torch runs"
    if facts.why_not:
        mend = "python -c 'import torch, torchvision' shows it whole; install both anew, as a pair"
        yield error(subject, facts.why_not, mend)
        return
    text = f"a process has torch and torchvision after {facts.seconds:.1f} s"
    yield ok(subject, text)
    if not facts.has_nms:
        text = "torchvision's operators do not load (nms): detection models cannot train"
        yield warning("torchvision", text, "install torch and torchvision of the same build")
    if len(facts.gpus) < num_gpus:
        text = f"this node shows {num_gpus} GPUs, torch can use {len(facts.gpus)}"
        mend = "check the driver (nvidia-smi) and the build of torch, or use --devices cpu"
        yield error("GPUs", text, mend)
    elif facts.gpus:
        names = sorted({gpu.name for gpu in facts.gpus})
        yield ok("GPUs", f"torch can use {len(facts.gpus)}: {', '.join(names)}")
    yield from _check_built(facts)
    if facts.nccl and facts.gpus:
        yield ok("NCCL in torch", facts.nccl)
    if facts.apart:
        shown = ", ".join(f"{a}-{b}" for a, b in facts.apart[:4])
        text = f"{len(facts.apart)} pairs of GPUs cannot read each other's memory: {shown}"
        yield warning("GPU links", text, "traffic goes through the CPU; see nvidia-smi topo -p2p r")


def _check_built(facts: AskedTorch) -> Iterator[Finding]:
    """Whether the binary has code for the GPUs."""
    if not facts.built_for:
        return
    for capability in sorted({gpu.capability for gpu in facts.gpus}):
        major, minor = capability
        # Code runs on the same major version from its minor one on; `compute_` is compiled anew.
        fits = any(_runs(code, major, minor) for code in facts.built_for)
        if not fits:
            text = f"torch has no code for GPUs of capability {major}.{minor}; it has for "
            text += ", ".join(facts.built_for)
            yield error("GPUs", text, "install a torch that is built for them, or --devices cpu")


def _runs(code: str, major: int, minor: int) -> bool:
    kind, _, digits = code.partition("_")
    digits = digits.rstrip("af")
    if not digits.isdecimal():
        return True  # of another maker: unknown
    theirs = divmod(int(digits), 10)
    if kind == "compute":
        return theirs <= (major, minor)
    return theirs[0] == major and theirs[1] <= minor


def check_gpu_memory(facts: AskedTorch) -> Iterator[Finding]:
    """Whether others use the memory of the GPUs."""
    for number, gpu in enumerate(facts.gpus):
        used = gpu.total - gpu.free
        # The driver itself and our own look take some hundreds of MiB.
        if used > max(1 << 30, gpu.total // 20):
            text = f"GPU {number} has {size(used)} of {size(gpu.total)} in use by others"
            yield warning("GPU memory", text, "nvidia-smi shows who; end it, or leave the GPU out")
