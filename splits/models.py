"""From a model and `--cut` to the stages of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from bundlerun.launcher.choices import Cutter, CutterChoice
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits import resnet, vgg
from bundlerun.splits.cutter import Cuttable, NoExample
from bundlerun.splits.graph.model import TracedModel
from bundlerun.splits.listed import joined_stages
from bundlerun.splits.replay.model import ReplayedModel

WORST_LOAD = 1.3
"""Of the most loaded device over the mean, before it is a warning: 65:35 in two equal stages."""
_EVEN_LOAD = 1.2
"""The same, up to which no other way to cut is looked for: 60:40 in two equal stages."""
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
    cutter: CutterChoice = "auto",
    tell: Callable[[str], object] = lambda _: None,
    tell_cuts: Callable[[tuple[str, ...]], object] = lambda _: None,
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
        cutter: the way to cut; "auto": "graph" where the model traces and divides well that way.
        tell: gets a line that says which way, and why.
        tell_cuts: gets the names at which it was cut.

    Raises:
        NoExample: the way to cut needs inputs.
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
    chunks, of_stage = Chunks(num_stages, chunks_per_stage), widths or [1] * num_stages
    # A chunk has as many devices as its stage.
    shares = [of_stage[chunks.stage_of(chunk)] for chunk in range(chunks.num_chunks)]
    chosen = choose(model, cutter, cut=cut, shares=shares, inputs=inputs)
    tell(chosen.line)
    tell_cuts(chosen.cuts)
    return chosen.way.cut(chosen.cuts, chunks_per_stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How a model is cut, and where."""

    name: Cutter
    way: Cuttable
    cuts: tuple[str, ...]
    why: str

    @property
    def line(self) -> str:
        """It, in words."""
        return f"cut by {self.name} at {', '.join(self.cuts)}: {self.why}"


def choose(
    model: nn.Module,
    cutter: CutterChoice,
    *,
    cut: Sequence[str],
    shares: Sequence[int],
    inputs: Sequence[object],
) -> Choice:
    """The way to cut a model into parts, and the names; arguments as for `make_stages`.

    Raises:
        NoExample: the way to cut needs inputs.
        ConfigError: the model cannot be cut as asked.
    """
    if cutter != "auto":
        way = cuttable(model, cutter, inputs)
        cuts = choose_cuts(way, cut, shares, inputs)
        return Choice(name=cutter, way=way, cuts=cuts, why=f"--cutter {cutter}")
    try:
        way = TracedModel(model, len(inputs) or None)
    except ConfigError as exc:
        replay = cuttable(model, "replay", inputs)
        cuts = choose_cuts(replay, cut, shares, inputs)
        return Choice(name="replay", way=replay, cuts=cuts, why=f"by graph, {exc}")
    try:
        cuts = choose_cuts(way, cut, shares, inputs)
    except ConfigError as exc:
        return _replayed(model, cut, shares, inputs, exc)
    graph = Choice(name="graph", way=way, cuts=cuts, why="the model traces")
    if not inputs:
        return graph
    if unsure := way.unsure(cuts, inputs):
        return _replayed_if_it_can(graph, model, cut, shares, inputs, unsure)
    # Named cuts are what is wanted; others may be as well divided as the other way can.
    return graph if cut and not cut[0].isdecimal() else _better(graph, model, cut, shares, inputs)


def _replayed_if_it_can(
    graph: Choice,
    model: nn.Module,
    cut: Sequence[str],
    shares: Sequence[int],
    inputs: Sequence[object],
    why: str,
) -> Choice:
    """Replay, which sends tensors only; the graph where that cannot cut so, to be checked."""
    try:
        way = cuttable(model, "replay", inputs)
        cuts = choose_cuts(way, cut, shares, inputs)
    except ConfigError:
        return graph
    return Choice(name="replay", way=way, cuts=cuts, why=f"by graph, {why}")


def _replayed(
    model: nn.Module,
    cut: Sequence[str],
    shares: Sequence[int],
    inputs: Sequence[object],
    refusal: ConfigError,
) -> Choice:
    """By replay, where that has the cuts that a graph has not; else raises the refusal."""
    if not inputs and _may_replay(model, cut, shares):
        raise NoExample(str(refusal)) from refusal
    try:
        way = cuttable(model, "replay", inputs)
        cuts = choose_cuts(way, cut, shares, inputs)
    except ConfigError:
        raise refusal from None
    return Choice(name="replay", way=way, cuts=cuts, why=f"by graph, {refusal}")


def _may_replay(model: nn.Module, cut: Sequence[str], shares: Sequence[int]) -> bool:
    """Whether replay may have such cuts, as far as is known without inputs."""
    if cut and not cut[0].isdecimal():
        names = {name for name, _ in model.named_modules()}
        return names.issuperset(cut)
    # Each part begins with a module, and is to have something to do.
    return sum(1 for module in model.modules() if module._parameters) >= len(shares)


def _better(
    graph: Choice,
    model: nn.Module,
    cut: Sequence[str],
    shares: Sequence[int],
    inputs: Sequence[object],
) -> Choice:
    """The graph, or replay where that divides the work much better."""
    load = graph.way.places(inputs).worst_load(graph.cuts, shares)
    if 0 < load <= _EVEN_LOAD:
        return graph
    try:
        way = cuttable(model, "replay", inputs)
        cuts = choose_cuts(way, cut, shares, inputs)
    except ConfigError:
        return graph
    other = way.places(inputs).worst_load(cuts, shares)
    if not other or (load and other > 0.95 * load):
        return graph
    if load:
        why = f"the most loaded device would do {load:.1f} times the work of the mean one"
        why = f"{why}, so {other:.1f} times"
    else:
        why = "its operations cannot be counted"
    return Choice(name="replay", way=way, cuts=cuts, why=f"by graph, {why}")


def easiest(
    model: nn.Module, cutter: CutterChoice, inputs: Sequence[object]
) -> tuple[Cutter, Cuttable, str]:
    """The name of the way to cut a model, the model for it, and why that one.

    Raises:
        NoExample: the way to cut needs inputs.
        ConfigError: the model cannot be cut.
    """
    if cutter != "auto":
        return cutter, cuttable(model, cutter, inputs), f"--cutter {cutter}"
    try:
        return "graph", TracedModel(model, len(inputs) or None), "the model traces"
    except ConfigError as exc:
        return "replay", cuttable(model, "replay", inputs), f"by graph, {exc}"


def cuttable(model: nn.Module, cutter: Cutter, inputs: Sequence[object]) -> Cuttable:
    """A model, to be cut in one way.

    Args:
        model: any.
        cutter: the way.
        inputs: what it is called with; nothing: not known.

    Raises:
        NoExample: that way needs inputs.
        ConfigError: the model cannot be cut that way.
    """
    if cutter == "graph":
        try:
            return TracedModel(model, len(inputs) or None)
        except ConfigError as exc:
            raise ConfigError(f"{exc}, or use --cutter replay") from exc
    if not inputs:
        raise NoExample(
            f"cutting {type(model).__name__} by replay needs an example of its inputs, and no "
            "sample could be read; look at the data, or use --shape 1"
        )
    return ReplayedModel(model, inputs)


def choose_cuts(
    traced: Cuttable, cut: Sequence[str], shares: Sequence[int], inputs: Sequence[object] = ()
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
    for name in names:
        traced.find(name, also=list(named))
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
