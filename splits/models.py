"""From a model and `--cut` to the stages of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits import resnet, vgg
from bundlerun.splits.graph import TracedModel
from bundlerun.splits.listed import joined_stages

Model = nn.Module | Sequence[nn.Module]


class Family(Protocol):
    """What a module such as `bundlerun.splits.resnet` knows of a family of models."""

    def named_cuts(self, model: nn.Module) -> dict[str, str]:
        """Names that stand for module names."""
        ...

    def default_cuts(self, model: nn.Module, shares: Sequence[float]) -> tuple[str, ...]:
        """Cuts into parts that have these shares of the work; nothing where it has none."""
        ...


def make_stages(
    model: Model,
    *,
    cut: Sequence[str],
    num_stages: int,
    chunks_per_stage: int = 1,
    model_name: str = "",
    widths: Sequence[int] = (),
    inputs: Sequence[object] = (),
) -> list[nn.Module]:
    """The stages of a bundle, in order.

    One stage is the model itself. Stages of a list of modules hold them under the names that
    `nn.Sequential` of the list would give. With several chunks a stage is a
    `bundlerun.splits.stage.ChunkedStage`.

    Args:
        model: the model, or its stages where it is already cut.
        cut: names; a single number for that many parts of about equal work; or nothing for the
            default of the model's family.
        num_stages: stages of the shape.
        chunks_per_stage: parts of the model that each stage has.
        model_name: name for messages.
        widths: devices of each stage, among which its work is divided; nothing: one each.
        inputs: what the model is called with, of which only shapes and types count; nothing: it
            is not known, and parameter bytes stand for work.

    Raises:
        ConfigError: the cuts do not fit the model or the number of stages.
    """
    if not isinstance(model, nn.Module):
        return joined_stages(
            model,
            cut=cut,
            num_stages=num_stages,
            chunks_per_stage=chunks_per_stage,
            model_name=model_name,
        )
    # Untraced: a model that cannot be cut still trains whole.
    if num_stages == 1:
        return [model]
    traced = TracedModel(model, len(inputs) or None)
    chunks, of_stage = Chunks(num_stages, chunks_per_stage), widths or [1] * num_stages
    # A chunk has as many devices as its stage.
    shares = [of_stage[chunks.stage_of(chunk)] for chunk in range(chunks.num_chunks)]
    return traced.cut(choose_cuts(traced, cut, shares, inputs), chunks_per_stage)


def choose_cuts(
    traced: TracedModel, cut: Sequence[str], shares: Sequence[int], inputs: Sequence[object] = ()
) -> tuple[str, ...]:
    """The module or node names at which `make_stages` cuts; `shares`: devices of each part.

    Raises:
        ConfigError: the number of cuts does not fit the model or the number of parts.
    """
    family, num_stages = _family(traced.model), len(shares)
    if not cut:
        default = family.default_cuts(traced.model, shares) if family else ()
        return default or traced.equal_cuts(num_stages, shares=shares, inputs=inputs)
    if len(cut) == 1 and cut[0].isdecimal():
        if int(cut[0]) != num_stages:
            raise ConfigError(
                f"--cut {cut[0]} asks for {cut[0]} equal parts and the shape has {num_stages} "
                f"stages; use --cut {num_stages}, or names"
            )
        return traced.equal_cuts(num_stages, shares=shares, inputs=inputs)
    named = family.named_cuts(traced.model) if family else {}
    # Checked before they are counted: a mistyped name is the more useful complaint.
    names = tuple(named.get(name, name) for name in cut)
    traced.check_names(names, also=list(named))
    if len(names) != num_stages - 1:
        raise ConfigError(
            f"--cut {','.join(cut)} makes {len(cut) + 1} stages and the shape has {num_stages}; "
            f"give {num_stages - 1} names"
        )
    return names


def _family(model: nn.Module) -> Family | None:
    if resnet.is_resnet(model):
        return resnet
    return vgg if vgg.is_vgg(model) else None
