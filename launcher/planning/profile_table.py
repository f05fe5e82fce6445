"""Pure: a profile in words and numbers for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bundlerun.launcher.console import noun_for
from bundlerun.launcher.planning.model_costs import ModelCosts, Profile

_MOST_GROUPS = 24
_FIRST = "the input"
"""Where the first piece begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Pieces next to each other, from `first` to before `end`."""

    name: str
    first: int
    end: int


def profile_text(profile: Profile, *, top: int) -> str:
    """A table for each size of micro-batch.

    Args:
        profile: any.
        top: slowest pieces that are listed.
    """
    key = profile.key
    how = "estimated, nothing was timed" if key.is_estimate else f"on {key.device}"
    head = [
        f"{how}, {key.precision}",
        f"cut by {profile.cutter}: {profile.why}" if profile.cutter else profile.why,
    ]
    return "\n".join([*head, *(line for c in profile.by_samples for line in _lines(c, top)),
                      "", *_update_lines(profile)])  # fmt: skip


def groups_of(costs: ModelCosts) -> list[Group]:
    """Pieces that begin in the same module, as finely as a table can show them."""
    names = [_FIRST, *(boundary.name for boundary in costs.boundaries)]
    found = _grouped(names, 1)
    for depth in (2, 3, 4):
        finer = _grouped(names, depth)
        if len(finer) > _MOST_GROUPS:
            break
        found = finer
    return found


def _grouped(names: Sequence[str], depth: int) -> list[Group]:
    found: list[Group] = []
    for number, name in enumerate(names):
        short = ".".join(name.split(".")[:depth])
        # A module's first piece goes by the outermost name of its place.
        begins = found and found[-1].end == found[-1].first + 1
        is_inside = begins and short.startswith(found[-1].name + ".")
        if found and (found[-1].name == short or is_inside):
            found[-1] = Group(name=short, first=found[-1].first, end=number + 1)
        else:
            found.append(Group(name=short, first=number, end=number + 1))
    return found


def _lines(costs: ModelCosts, top: int) -> Iterator[str]:
    groups = groups_of(costs)
    width = max(12, *(len(group.name) for group in groups))
    yield ""
    yield f"micro-batches of {costs.samples}, {len(costs.pieces)} pieces"
    yield (
        f"{'begins at':{width}} pieces   forward  backward  weights     keeps      peak    "
        "parameters   receives"
    )
    for group in groups:
        yield _row(costs, group, width)
    yield _row(costs, Group(name="in all", first=0, end=len(costs.pieces)), width)
    yield f"loss {_ms(costs.loss_s).strip()}, forward and backward"
    if shared := sum(each.num_bytes for each in costs.shared):
        yield f"{len(costs.shared)} parameters of {_mb(shared).strip()} are of several pieces"
    if unused := sum(piece.num_unused for piece in costs.pieces):
        where = [g.name for g in groups if costs.part(g.first, g.end).num_unused]
        yield (
            f"without a gradient: {unused} trained {noun_for(unused, 'parameter')}, among those "
            f"from {', '.join(where)}; buckets from there on leave at the end of a step, unless "
            "--freeze takes them out"
        )
    yield from _top(costs, top)


def _row(costs: ModelCosts, group: Group, width: int) -> str:
    part = costs.part(group.first, group.end)
    received = costs.boundaries[group.first - 1].forward_bytes if group.first else costs.input_bytes
    share = f"{part.weight_s / part.backward_s:6.0%}" if part.backward_s else "     -"
    return (
        f"{group.name:{width}} {group.end - group.first:6} {_ms(part.forward_s)} "
        f"{_ms(part.backward_s)}   {share} {_mb(part.kept_bytes)} {_mb(part.peak_bytes)}    "
        f"{_mb(part.parameter_bytes)} {_mb(received)}"
    )


def _top(costs: ModelCosts, count: int) -> Iterator[str]:
    seconds = [piece.forward_s + piece.backward_s for piece in costs.pieces]
    order = sorted(range(len(seconds)), key=lambda i: -seconds[i])[:count]
    total = sum(seconds)
    names = [_FIRST, *(boundary.name for boundary in costs.boundaries)]
    if total and order:
        shown = ", ".join(f"{names[i]} {seconds[i] / total:.1%}" for i in order)
        yield f"slowest pieces: {shown}"


def _update_lines(profile: Profile) -> Iterator[str]:
    update = profile.update
    yield (
        f"optimizer: {update.state_share:.2f} bytes of state per byte of trained parameters, "
        f"{1e12 * update.update_s_per_byte:.0f} ms per GB"
    )
    if update.load_s:
        yield f"a loading process takes {_ms(update.load_s).strip()} for a sample"
    yield f"a process without a model has {_mb(profile.program_bytes).strip()}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:6.2f} ms" if seconds < 0.1 else f"{1e3 * seconds:6.0f} ms"


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:7.2f} MB" if num_bytes < 1e8 else f"{num_bytes / 1e6:7.0f} MB"
