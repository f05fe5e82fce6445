"""Pure: GPUs as their driver lists them, their links, and cards that nobody can use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning

QUERY = (
    "index", "name", "pcie.link.width.current", "pcie.link.width.max",
    "ecc.errors.uncorrected.volatile.total", "clocks_event_reasons.hw_slowdown",
    "temperature.gpu",
)  # fmt: skip
"""What `nvidia-smi --query-gpu` is asked."""
_LINKS = {
    "NV": "NVLink",
    "PIX": "one PCIe switch",
    "PXB": "several PCIe switches",
    "PHB": "a PCIe host bridge",
    "NODE": "host bridges of a NUMA node",
    "SYS": "the link between NUMA nodes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverGpu:
    """A GPU as nvidia-smi lists it; 0 and False where it does not say."""

    index: int
    name: str
    width: int = 0
    width_max: int = 0
    uncorrected: int = 0
    is_slowed: bool = False
    celsius: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """The devices of a node.

    kind: what was asked for. num_gpus: that ranks would see.
    why_not: what is wrong with a variable that names them; else nothing.
    cards: PCI addresses of GPUs that no driver shows.
    gpus, links: of nvidia-smi, none in a quick look; a link by its two GPUs, as `NV18` or `SYS`.
    """

    kind: str
    num_gpus: int
    why_not: str = ""
    cards: tuple[str, ...] = ()
    gpus: tuple[DriverGpu, ...] = ()
    links: tuple[tuple[int, int, str], ...] = ()


def check_devices(facts: DeviceFacts) -> Iterator[Finding]:
    """All of it."""
    if facts.why_not:
        yield error("devices", facts.why_not, "name GPUs that are there, or use --devices cpu")
    elif facts.kind == "cpu":
        yield ok("devices", "the CPU, as --devices cpu says")
    elif facts.num_gpus:
        yield ok("devices", f"{facts.num_gpus} GPUs")
    elif facts.kind == "gpu":
        yield error("devices", "--devices gpu, and this node shows no GPU", "use --devices cpu")
    elif facts.cards:
        text = (
            f"{len(facts.cards)} GPUs (PCI {', '.join(facts.cards[:2])}) and no driver shows them"
        )
        yield warning(
            "devices", text, "install their driver; --devices cpu says that the CPU is meant"
        )
    else:
        yield ok("devices", "the CPU; no GPU")
    for gpu in facts.gpus:
        yield from _check_gpu(gpu)
    yield from check_gpu_links(facts.links)


def _check_gpu(gpu: DriverGpu) -> Iterator[Finding]:
    subject = f"GPU {gpu.index}"
    if gpu.uncorrected:
        text = f"{gpu.name}: {gpu.uncorrected} memory errors that could not be corrected"
        yield warning(subject, text, "reset or replace it: results may be wrong")
    if gpu.is_slowed:
        text = f"{gpu.name}: slowed down by its hardware, at {gpu.celsius} degrees"
        yield warning(subject, text, "check cooling and power: nvidia-smi -q -d PERFORMANCE")
    if 0 < gpu.width < gpu.width_max:
        text = f"{gpu.name}: {gpu.width} PCIe lanes of {gpu.width_max}"
        yield warning(subject, text, "seat the card anew, or ask whether its slot has so few")


def check_gpu_links(links: Sequence[tuple[int, int, str]]) -> Iterator[Finding]:
    """How the GPUs are linked; pairs that are worse than most others are told."""
    if not links:
        return
    kinds = Counter(_kind(link) for _, _, link in links)
    text = ", ".join(
        f"{number} over {_LINKS.get(kind, kind)}" for kind, number in kinds.most_common()
    )
    outside = [(a, b) for a, b, link in links if _kind(link) != "NV"]
    if kinds["NV"] and outside and kinds["NV"] > len(outside):
        shown = ", ".join(f"{a}-{b}" for a, b in outside[:4])
        mend = f"{shown} have none: check nvidia-smi nvlink -s for links that are down"
        yield warning("GPU links", f"pairs: {text}", mend)
    else:
        yield ok("GPU links", f"pairs: {text}")


def _kind(link: str) -> str:
    return "NV" if link.startswith("NV") and link[2:].isdecimal() else link


def parse_gpus(table: str) -> tuple[DriverGpu, ...]:
    """Reads what nvidia-smi answers to `QUERY`, as CSV without units; odd lines are passed over."""
    found = []
    for line in table.splitlines():
        fields = [each.strip() for each in line.split(",")]
        if len(fields) != len(QUERY) or not fields[0].isdecimal():
            continue
        index, name, width, width_max, uncorrected, slowed, celsius = fields
        found.append(
            DriverGpu(
                index=int(index),
                name=name,
                width=_int(width),
                width_max=_int(width_max),
                uncorrected=_int(uncorrected),
                is_slowed=slowed == "Active",
                celsius=_int(celsius),
            )
        )
    return tuple(found)


def _int(word: str) -> int:
    return int(word) if word.isdecimal() else 0


def parse_links(table: str) -> tuple[tuple[int, int, str], ...]:
    """Reads the matrix of `nvidia-smi topo -m`: each pair of GPUs once."""
    found = []
    for line in table.splitlines():
        # Colours, which it also writes into a pipe.
        words = line.replace("\x1b[4m", "").replace("\x1b[0m", "").split()
        if not words or not words[0].startswith("GPU") or not words[0][3:].isdecimal():
            continue
        row = int(words[0][3:])
        # The heading has GPU0 as its first word, too, and GPU1 or a heading as its second.
        if len(words) < 2 or words[1].startswith(("GPU", "NIC", "CPU")):
            continue
        found += [(row, other, words[1 + other]) for other in range(row) if 1 + other < len(words)]
    return tuple((b, a, link) for a, b, link in found)
