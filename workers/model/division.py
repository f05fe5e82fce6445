"""How the work of a model is divided among its stages, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress

from torch import nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.splits.costs import StageCosts, costs_of_stages
from bundlerun.splits.listed import ListedStage
from bundlerun.splits.models import WORST_LOAD
from bundlerun.splits.replay.stage import ReplayStage
from bundlerun.splits.shared import shared_parameters
from bundlerun.workers.model.example import Example


def division_lines(
    config: TrainConfig, stages: Sequence[nn.Module], example: Example
) -> Iterator[str]:
    """Yields a line about the stages, and more of them where there is more to know.

    What the stages share is told, and where a device does much more than the others.

    Args:
        config: has the shape and the cut.
        stages: all of them.
        example: what the first is called with.
    """
    shared = shared_line(stages)
    if shared:
        yield shared
    costs: list[StageCosts] | None = None
    # An operation may need numbers, which an example has none of.
    with suppress(Exception):
        costs = _costs(config, stages, example)
    if costs is None or not sum(cost.operations for cost in costs):
        sizes = [sum(p.numel() * p.element_size() for p in stage.parameters()) for stage in stages]
        shown = ", ".join(f"stage {i} {size / 1e6:.1f} MB" for i, size in enumerate(sizes))
        yield f"parameters by stage, operations not counted: {shown}"
        return
    yield costs_line(costs, example.num_samples)
    is_listed = isinstance(stages[0], ListedStage)
    warning = load_warning(
        costs, config.shape, cut=config.cut, num_chunks=config.num_chunks, is_listed=is_listed
    )
    if warning:
        yield warning


def _costs(
    config: TrainConfig, stages: Sequence[nn.Module], example: Example
) -> list[StageCosts] | None:
    """Of each stage; None where they are not known."""
    replayed = [stage.costs for stage in stages if isinstance(stage, ReplayStage)]
    if replayed:
        # Counted where it was cut; all of them or none.
        return [costs for costs in replayed if costs is not None] or None
    return costs_of_stages(stages, example.inputs, config.chunks) if example.inputs else None


def shared_line(stages: Sequence[nn.Module]) -> str | None:
    """What several stages have a copy of, and what that costs; None where there is nothing."""
    sizes = {
        s: p.numel() * p.element_size()
        for each in stages
        for s, p in shared_parameters(each).items()
    }
    if not sizes:
        return None
    largest = max(sizes, key=lambda shared: sizes[shared])
    several = "s" if len(sizes) > 1 else ""
    is_trained = any(p.requires_grad for each in stages for p in shared_parameters(each).values())
    then = "in each step their gradients are summed" if is_trained else "none is trained"
    return (
        f"stages share {len(sizes)} parameter{several} of {sum(sizes.values()) / 1e6:.3g} MB, such "
        f"as {' = '.join(largest.names)} (stages {' and '.join(map(str, largest.stages))}): each "
        f"has a copy, and {then}"
    )


def costs_line(costs: Sequence[StageCosts], num_samples: int) -> str:
    """What each stage has, per sample.

    Args:
        costs: of a forward of `num_samples` samples.
    """
    total = sum(cost.operations for cost in costs)
    parts = [
        f"stage {i} {cost.operations / total:.0%} "
        f"({cost.operations / num_samples / 1e9:.3g} GFLOP), "
        f"{cost.parameter_bytes / 1e6:.1f} MB of parameters"
        + (f", sends {cost.sent_bytes / num_samples / 1e6:.3g} MB" if i < len(costs) - 1 else "")
        for i, cost in enumerate(costs)
    ]
    return "operations by stage, for one sample forward: " + "; ".join(parts)


def load_warning(
    costs: Sequence[StageCosts],
    shape: Shape,
    *,
    cut: Sequence[str],
    num_chunks: int,
    is_listed: bool,
) -> str | None:
    """What to say, and to do, where a device of one stage does much more than the mean device.

    Args:
        costs: of each stage.
        shape: of a bundle.
        cut: what --cut says.
        num_chunks: of the whole model.
        is_listed: whether the model came cut.
    """
    # Per device: a stage of several ranks shares its micro-batches out among them (I3).
    mean = sum(cost.operations for cost in costs) / shape.size
    loads = [
        cost.operations / width / mean for cost, width in zip(costs, shape.widths, strict=True)
    ]
    worst = max(range(len(loads)), key=lambda i: loads[i])
    if loads[worst] <= WORST_LOAD:
        return None
    if is_listed:
        mend = "move modules of it to a neighbour in the list"
    elif len(cut) == 1 and cut[0].isdecimal():
        mend = "no boundary divides the model better; give that stage more devices in --shape"
    else:
        mend = f"--cut {num_chunks} divides the operations as equally as the boundaries allow"
    return (
        f"warning: a device of stage {worst} does {loads[worst]:.1f} times the operations of the "
        f"mean device, and the others wait for it; {mend}"
    )
