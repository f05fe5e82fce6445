"""Pure: what nodes tell when they come to a round, and which backend their ranks use in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from bundlerun.launcher.choices import TransportChoice
from bundlerun.launcher.errors import NodeError


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a node tells when it comes to a round.

    Args:
        name: of the node.
        num_ranks: that it has.
        site: what it shares with others that fail with it.
        machine: that it runs on, which agents of one machine have alike; empty: not known.
        address: where others reach it; empty where only torch knows.
        has_nccl: whether its torch has NCCL.
        gpus: of its ranks, by names that are unique in the world; empty on the CPU.
        has_gpus: whether it has any; known, as the next, once all nodes have told theirs.
        is_shared: whether some GPU of it has several ranks.
        terms: see `bundlerun.launcher.agreement.agreed`.
    """

    name: str
    num_ranks: int
    site: str = ""
    machine: str = ""
    address: str = ""
    has_nccl: bool = False
    gpus: Sequence[str] = ()
    has_gpus: bool = False
    is_shared: bool = False
    terms: Mapping[str, str] = field(default_factory=dict)

    @property
    def can_use_nccl(self) -> bool:
        """Whether NCCL works here: it wants a GPU for each rank."""
        return self.has_nccl and not self.is_shared


def for_all(nodes: Sequence[Hello]) -> list[Hello]:
    """What all ranks get: whether GPUs are shared, and not what only the first rank reads.

    Several agents of one machine give their ranks the same GPUs and do not know of each other.
    """
    num_ranks = Counter(gpu for node in nodes for gpu in node.gpus)
    return [
        replace(
            node,
            terms={},
            gpus=(),
            has_gpus=bool(node.gpus),
            has_nccl=node.has_nccl and bool(node.gpus),
            is_shared=any(num_ranks[gpu] > 1 for gpu in node.gpus),
        )
        for node in nodes
    ]


def choose_backend(
    transport: TransportChoice, nodes: Sequence[Hello], *, num_stages: int, has_gpus: bool
) -> tuple[str, str]:
    """The backend for tensors on the devices, and what to tell the user about the choice; or "".

    Args:
        transport: as configured.
        nodes: of the round, as `for_all` gives them.
        num_stages: of a bundle; several of them talk in the middle of a step.
        has_gpus: whether there is anything to choose.

    Raises:
        NodeError: NCCL, or memory of GPUs, is asked for and cannot be had.
    """
    # One answer for all ranks: a group has one backend.
    is_shared = any(node.is_shared for node in nodes)
    can_use_nccl = all(node.can_use_nccl for node in nodes)
    if transport == "nccl" and not can_use_nccl:
        why = "several ranks share a GPU" if is_shared else "some node has no GPUs, or no NCCL"
        raise NodeError(
            f"--transport nccl needs a GPU of its own for every rank on every node, and {why}; "
            "use --transport auto or cpu"
        )
    if transport == "ipc" and not all(node.has_gpus for node in nodes):
        raise NodeError("--transport ipc needs GPUs on every node; use --transport auto or cpu")
    if transport in ("cpu", "ipc") or not has_gpus:
        return "gloo", ""
    if transport == "auto" and is_shared:
        return "gloo", "several ranks share a GPU, so all talk through CPU memory"
    if transport == "auto" and can_use_nccl and num_stages > 1:
        return "gloo", (
            "stages talk through CPU memory, the careful way: NCCL between stages has not been "
            "tried on two GPUs yet; --transport nccl takes it"
        )
    return ("nccl", "") if can_use_nccl else ("gloo", "")
