"""The cases, in the order in which they run: what is cheap first, what can be missed last.

The limits add up to more than there is time for, as most cases need half of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Case:
    """A module and the time that it may take.

    Args:
        name: what `--only` and the table call it.
        module: of this package, with a function `run(bench)`.
        what: it shows, in words.
        limit_s: after so many seconds it is ended.
        needs: modules besides torch without which it says "cannot run".
    """

    name: str
    module: str
    what: str
    limit_s: float
    needs: tuple[str, ...] = ()


_TRAINING = ("numpy", "psutil", "safetensors", "torchvision", "tqdm")
"""What a rank that trains imports."""

READY = Case("ready", "ready", "what is here; the libraries are read from the disk once", 90)
CASES: Sequence[Case] = (
    Case("G0", "cases.ceilings", "copies, and memory that the GPU maps", 25, ("psutil",)),
    Case("G3", "cases.collectives", "NCCL with one rank", 40, _TRAINING),
    Case("G7", "cases.hop", "messages between two ranks", 40, _TRAINING),
    Case("G6", "cases.counts", "waits and kernels of a step", 45, _TRAINING),
    Case("G4", "cases.waiting", "what waits behind a kernel that waits", 45, ("numpy", "psutil")),
    Case("G1", "cases.start", "a forked rank starts CUDA", 40, _TRAINING),
    Case("G14", "cases.bad_input", "out of memory and bad input end at once", 45, _TRAINING),
    Case("G9", "cases.overlap", "copies under computing", 45, _TRAINING),
    Case("G5", "cases.resnet", "ResNet-50 against a plain loop", 90, _TRAINING),
    Case("G10", "cases.snapshots", "what a snapshot costs", 60, _TRAINING),
    Case("G8", "cases.parity", "several ranks on one GPU", 60, _TRAINING),
    Case("G11", "cases.restart", "a rank is killed", 75, _TRAINING),
    Case("G12", "cases.feeding", "photographs from files", 60, (*_TRAINING, "PIL")),
    Case("G2", "cases.own_tests", "the project's own tests for GPUs", 75, ("pytest", "hypothesis")),
    Case("G13", "cases.arithmetic", "precision, --compile, the same bits", 90, _TRAINING),
)


def chosen(only: Sequence[str]) -> list[Case]:
    """The cases with these names, in their order; without names all.

    Raises:
        KeyError: there is none of that name.
    """
    known = {case.name: case for case in CASES}
    for name in only:
        if name not in known:
            raise KeyError(name)
    return [case for case in CASES if not only or case.name in only]
