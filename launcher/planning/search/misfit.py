"""Why no plan fits, and what of a model no cut can balance, in words."""

from __future__ import annotations

from dataclasses import dataclass

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.microbatch import divisors
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.memory.fits import Room, remedies
from bundlerun.launcher.planning.model_costs import ModelCosts, Profile
from bundlerun.launcher.planning.search.judge import Misfit


@dataclass(frozen=True, slots=True, kw_only=True)
class Lump:
    """A piece with more work than all the others together: its stage decides how long a step is.

    Args:
        piece: its number.
        share: of the model's work.
        after: the boundary before it; empty: the model begins with it.
        before: the one behind it; empty: it is the last.
    """

    piece: int
    share: float
    after: str
    before: str

    def __str__(self) -> str:
        ends = [f"from {self.after}" if self.after else "", f"to {self.before}" * bool(self.before)]
        where = " ".join(filter(None, ends))
        return (
            f"the piece {where} has {self.share:.0%} of the model's work, more than all others "
            "together: no cut balances that; give its stage more devices, or the model more "
            "places to cut there"
        )


def lump_of(costs: ModelCosts) -> Lump | None:
    """Such a piece, where there is one."""
    work = [piece.forward_s + piece.backward_s for piece in costs.pieces]
    work[-1] += costs.loss_s
    largest = max(range(len(work)), key=work.__getitem__)
    if len(work) == 1 or work[largest] * 2 <= sum(work):
        return None
    names = ["", *(boundary.name for boundary in costs.boundaries), ""]
    return Lump(
        piece=largest,
        share=work[largest] / sum(work),
        after=names[largest],
        before=names[largest + 1],
    )


def too_large(misfit: Misfit, profile: Profile, cluster: Cluster, request: Request) -> ConfigError:
    """What is missing at the least, and what would fit.

    Args:
        misfit: of all plans, the one that comes nearest to fitting.
        profile, cluster, request: what was asked.
    """
    plan, short = misfit.candidate, misfit.short
    again = f" --recompute {_row(plan.recompute)}," if plan.recompute else ""
    told = (
        f"no plan fits: with --shape {plan.shape},{again} micro-batches of {plan.samples}, "
        f"stage {short.stage} needs {_size(short.needed)}, {_size(short.over)} more than "
        f"{_room(short.room)} of node kind {short.kind.name!r} has; "
    )
    words = remedies(profile, plan, cluster, request, divisors(request.batch_size)).words
    if words:
        return ConfigError(f"{told}{' or '.join(words)} would fit")
    return ConfigError(f"{told}use devices with more memory, or a smaller model")


def no_frame(profile: Profile, cluster: Cluster, request: Request) -> ConfigError:
    """Not one bundle, or not as many pieces as stages."""
    devices = sum(kind.devices * kind.count for kind in cluster.kinds)
    pieces = len(profile.by_samples[0].pieces)
    shape = f"--shape {request.shape}" if request.shape else "any shape"
    chunks = f" and --chunks {request.chunks}" if (request.chunks or 1) > 1 else ""
    asked = f", --schedule {request.schedule}" if request.schedule else ""
    return ConfigError(
        f"no plan for {devices} devices and a model of {pieces} pieces has {shape}{chunks}{asked}; "
        "leave one of them to the planner, or give fewer stages"
    )


def _room(room: Room) -> str:
    return {Room.DEVICE: "a device", Room.HOST: "the memory", Room.SHM: "/dev/shm"}[room]


def _row(stages: frozenset[int]) -> str:
    return ",".join(map(str, sorted(stages)))


def _size(num_bytes: float) -> str:
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.3g} {name}"
    return f"{num_bytes:.0f} B"
