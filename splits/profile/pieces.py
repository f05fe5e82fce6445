"""A model as a row of pieces, whichever way it is cut, and run whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bundlerun.launcher.choices import Cutter
from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.cutter import NoExample, Places
from bundlerun.splits.graph.model import TracedModel
from bundlerun.splits.listed import as_arguments, joined_stages
from bundlerun.splits.models import Model, easiest
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.splits.stage import overwritable
from bundlerun.splits.state import tensors_of

_MUCH = 0.2
"""Of a model's operations in one piece, from which on another way to cut is looked at."""


class Marks(Protocol):
    """Is told where a forward has come to."""

    def enter(self, piece: int, crossing: Sequence[object]) -> None:
        """The forward enters a piece after the first; `crossing`: what it has for it and others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """Bytes that a boundary costs: of what crosses it, and of the gradients that come back."""

    forward: int
    backward: int


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """A model in pieces.

    Args:
        cutter: how it is cut; empty where it comes cut, or cannot be.
        why: in words.
        whole: the model, to be trained or moved; of a list a module that has all of them.
        names: of the boundaries, one less than pieces.
        forward: the whole model's, which tells a `Marks` where it has come to.
        users: the pieces that use each parameter and buffer, by its identity.
        sent: at each boundary; empty: what `forward` tells is all.
    """

    cutter: Cutter | None
    why: str
    whole: nn.Module
    names: tuple[str, ...]
    forward: Callable[..., Any]
    users: Mapping[int, frozenset[int]]
    sent: tuple[Sent, ...] = ()
    plain: Callable[..., Any] = field(default=lambda: None)
    """The same forward, which tells nobody."""

    @property
    def count(self) -> int:
        """Of pieces."""
        return len(self.names) + 1

    def used_by(self, tensor: Tensor) -> list[int]:
        """The pieces that use a parameter or buffer, increasing; the last, where none does."""
        return sorted(self.users.get(id(tensor), ())) or [self.count - 1]


def pieces_of(model: Model, cutter: str, inputs: Sequence[object]) -> Pieces:
    """A model in as many pieces as it can be cut into; in one, where it cannot.

    Args:
        model: or its stages, where it is already cut; on any device.
        cutter: as `--cutter` says.
        inputs: what it is called with; only shapes and types count.
    """
    if not isinstance(model, nn.Module):
        return _listed(model)
    try:
        name, way, why = easiest(model, cutter, inputs)  # type: ignore[arg-type]
    except NoExample:
        raise
    except ConfigError as exc:
        users: dict[int, frozenset[int]] = {}
        return Pieces(
            cutter=None, why=str(exc), whole=model, names=(), users=users,
            forward=lambda marks, *given: model(*given), plain=model,
        )  # fmt: skip
    if cutter == "auto" and isinstance(way, TracedModel):
        name, way, why = _finer(way, model, inputs, why)
    if isinstance(way, TracedModel):
        return _traced(way, inputs, why)
    assert isinstance(way, ReplayedModel), name
    return _replayed(way, why)


def _finer(
    traced: TracedModel, model: nn.Module, inputs: Sequence[object], why: str
) -> tuple[Cutter, TracedModel | ReplayedModel, str]:
    """The graph; or replay, where that cuts a model apart which is nearly one piece of a graph."""
    places = traced.places(inputs)
    share = _largest(places, counts=bool(places.operations))
    if not inputs or share <= _MUCH:
        return "graph", traced, why
    try:
        replayed = ReplayedModel(model, inputs)
    except ConfigError:
        return "graph", traced, why
    if _largest(replayed.places(), counts=bool(places.operations)) >= 0.95 * share:
        return "graph", traced, why
    what = "operations" if places.operations else "parameters"
    return "replay", replayed, f"by graph, one piece has {share:.0%} of the {what}"


def _largest(places: Places, *, counts: bool) -> float:
    """The share of the operations that the largest piece has; of parameter bytes, uncounted."""
    done = [place.operations if counts else place.parameter_bytes for place in places.places]
    total = places.operations if counts else places.parameter_bytes
    parts = [after - before for before, after in pairwise((0, *done, total))]
    return max(parts) / total if total else 1.0


def _traced(way: TracedModel, inputs: Sequence[object], why: str) -> Pieces:
    # What is no tensor may arrive at another stage as something else: no place to cut.
    places = way.sure(inputs)
    return Pieces(
        cutter="graph",
        why=why,
        whole=way.model,
        names=tuple(place.names[0] for place in places),
        forward=way.marked(places),
        users=way.users(places),
        plain=way.model,
    )


def _replayed(way: ReplayedModel, why: str) -> Pieces:
    model, places = way.model, way.boundaries
    names = [place.names[0] for place in places]

    def forward(marks: Marks, *inputs: Any) -> Any:  # noqa: ANN401 - as the model's
        with ExitStack() as stack:
            for number, name in enumerate(names):
                hook = _entering(marks, number + 1)
                # First of all hooks: what the user's do belongs to the piece.
                handle = model.get_submodule(name).register_forward_pre_hook(hook, prepend=True)
                stack.callback(handle.remove)
            return model(*inputs)

    return Pieces(
        cutter="replay",
        why=why,
        whole=model,
        names=tuple(names),
        forward=forward,
        users=way.users(places),
        sent=tuple(Sent(forward=f, backward=b) for f, b in map(way.sent_bytes, places)),
        plain=model,
    )


def _entering(marks: Marks, piece: int) -> Callable[[nn.Module, object], None]:
    has_been = False

    def hook(module: nn.Module, given: object) -> None:
        nonlocal has_been
        # Only the first call of a module is the boundary.
        if not has_been:
            has_been = True
            marks.enter(piece, ())

    return hook


def _listed(modules: Sequence[nn.Module]) -> Pieces:
    (whole,) = joined_stages(modules, cut=(), num_stages=1, model_name="")

    def forward(marks: Marks, *inputs: Any) -> Any:  # noqa: ANN401 - as the model's
        result: object = tuple(map(overwritable, inputs))
        for number, module in enumerate(modules):
            arguments = as_arguments(result)
            if number:
                marks.enter(number, tree_leaves(arguments))
            result = module(*arguments)
        return result

    users: dict[int, set[int]] = {}
    for number, module in enumerate(modules):
        for tensor in tensors_of(module):
            users.setdefault(id(tensor), set()).add(number)
    return Pieces(
        cutter=None,
        why="the model comes cut",
        whole=whole,
        names=tuple(str(number) for number in range(1, len(modules))),
        forward=forward,
        users={key: frozenset(found) for key, found in users.items()},
        plain=whole,
    )
