"""Cutting a model at named boundaries, its parameter names kept."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import nn

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits.balance import Option, cheapest_options
from bundlerun.splits.costs import GraphCosts, graph_costs
from bundlerun.splits.cutter import Place, Places
from bundlerun.splits.graph.extract import extract
from bundlerun.splits.graph.flow import Flow
from bundlerun.splits.modes import modes_kept, read_modes
from bundlerun.splits.shared import settle_shared
from bundlerun.splits.stage import Stage, attach, outermost, state_paths
from bundlerun.splits.state import find_attribute, named_state, names_by_id, tensors_of
from bundlerun.splits.tracing.trace import ModuleTracer, trace_modes

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A place where the model can be cut."""

    names: tuple[str, ...]
    """All names of it; the first is that of the outermost module that begins there."""
    train: int
    eval: int
    num_tensors: int
    """Tensors that cross in evaluation."""


def cut_model(
    model: nn.Module, cuts: Sequence[str], num_inputs: int | None = None
) -> list[nn.Module]:
    """The stages of `model`, one more than cuts.

    A stage takes the tensors of the stage before it as positional arguments and returns a tuple of
    tensors; the last returns what the model returns. Modules and parameters are the model's own
    objects, under the model's own names.

    Args:
        model: on any device, `meta` included.
        cuts: module or node names, each meaning "a stage begins here"; any order.
        num_inputs: arguments that the model is called with; None: those without a default.

    Raises:
        ConfigError: the model cannot be traced, or a cut is unknown, given twice, or divides what
            belongs together.
    """
    return TracedModel(model, num_inputs).cut(cuts)


def boundary_names(model: nn.Module) -> list[str]:
    """The valid cut names of `model`, in the order of its operations."""
    return TracedModel(model).names


class TracedModel:
    """A model and every place where it can be cut.

    Args:
        model: on any device.
        num_inputs: arguments that it is called with; None: those without a default.

    Raises:
        ConfigError: the model cannot be traced.
    """

    def __init__(self, model: nn.Module, num_inputs: int | None = None) -> None:
        self.model = model
        self._modes = read_modes(model)
        self._graphs = trace_modes(model, num_inputs)
        self._train = Flow(self._graphs.train, model)
        self._eval = Flow(self._graphs.eval, model)

    @cached_property
    def boundaries(self) -> list[Boundary]:
        """Where the model can be cut, in order."""
        evals = self._eval.boundaries()
        names: dict[tuple[int, int], list[str]] = {}
        for name, train in self._train.boundaries().items():
            # Both modes need the boundary: a stage holds the same modules in each.
            if name in evals:
                names.setdefault((train, evals[name]), []).append(name)
        found: list[Boundary] = []
        for (train, eval_), same in sorted(names.items()):
            # Increasing in both graphs: otherwise two cuts would cross each other in one mode.
            if self._is_open(train, eval_) and (not found or eval_ > found[-1].eval):
                count = len(self._eval.crossing(eval_))
                found.append(
                    Boundary(names=tuple(same), train=train, eval=eval_, num_tensors=count)
                )
        return found

    def _is_open(self, train: int, eval_: int) -> bool:
        return (
            0 < train < len(self._train.steps)
            and 0 < eval_ < len(self._eval.steps)
            and train not in self._train.blocked
            and eval_ not in self._eval.blocked
        )

    @property
    def names(self) -> list[str]:
        """The valid cut names."""
        return [name for boundary in self.boundaries for name in boundary.names]

    @property
    def refused(self) -> list[str]:
        """Names of operations where the model cannot be cut."""
        valid = set(self.names)
        return [name for name in self._train.boundaries() if name not in valid]

    def equal_cuts(
        self, num_parts: int, *, shares: Sequence[float] = (), inputs: Sequence[object] = ()
    ) -> tuple[str, ...]:
        """Cuts into parts of about equal operations; of about equal parameter bytes without inputs.

        Balance comes first. Among cuts that are about as balanced, those are taken that the fewest
        bytes cross, or without inputs the fewest tensors; gradients of what both sides use cross.

        Args:
            num_parts: parts.
            shares: of the whole for each part, any unit; nothing: equal ones.
            inputs: what the model is called with; only shapes and types count.

        Raises:
            ConfigError: the model has too few boundaries.
        """
        self._check_count(num_parts - 1)
        found = self._counted(inputs) if inputs else None
        steps = found.operations if found else self._train.step_costs()

        def price(boundary: Boundary) -> int:
            shared = self._train.shared_bytes(boundary.train)
            if found:
                return found.crossing_bytes(self._train, boundary.train) + sum(shared)
            return len(self._train.crossing(boundary.train)) + len(shared)

        options = [Option(place=b.train, price=price(b), name=b.names[0]) for b in self.boundaries]
        return cheapest_options(steps, options, shares or [1] * num_parts)

    def places(self, inputs: Sequence[object] = ()) -> Places:
        """Where the model can be cut; arguments as for `equal_cuts`."""
        found = self._counted(inputs) if inputs else None
        done = list(accumulate(found.operations if found else [0] * len(self._train.steps)))
        ends = [boundary.train for boundary in self.boundaries]
        sizes = list(accumulate(self._train.step_costs(), initial=0))
        places = [
            Place(
                names=boundary.names,
                operations=done[boundary.train - 1],
                parameter_bytes=sizes[end],
                crossing_bytes=found.crossing_bytes(self._train, end) if found else 0,
            )
            for boundary, end in zip(self.boundaries, ends, strict=True)
        ]
        return Places(places=places, operations=done[-1], parameter_bytes=sizes[-1])

    def unsure(self, cuts: Sequence[str], inputs: Sequence[object]) -> str:
        """What crosses one of `cuts` and may arrive as something else, in words; nothing: none.

        Args:
            cuts: names.
            inputs: what the model is called with; only shapes and types count.
        """
        found = self._run(inputs)
        for cut in cuts:
            for node in self._train.crossing(self.find(cut).train):
                name = self._train.qualified_names[node]
                if found is not None and node in found.lost:
                    return f"{name!r} crosses {cut!r}, and is no tensor but {found.lost[node]}"
                if found is None and node in self._train.untold:
                    return f"{name!r} crosses {cut!r}, and what that is shows only when it runs"
        return ""

    def sure(self, inputs: Sequence[object]) -> list[Boundary]:
        """The boundaries at which all that crosses surely arrives as it is; see `unsure`."""
        found = self._run(inputs) if inputs else None
        lost = self._train.untold if found is None else found.lost
        crossing = self._train.crossing
        return [b for b in self.boundaries if not any(n in lost for n in crossing(b.train))]

    def _counted(self, inputs: Sequence[object]) -> GraphCosts | None:
        """What the model costs; None where it does nothing that is counted, or needs numbers."""
        found = self._run(inputs)
        return found if found is not None and any(found.operations) else None

    def _run(self, inputs: Sequence[object]) -> GraphCosts | None:
        """A run of the training graph; None where it needs numbers."""
        with modes_kept(self.model):
            self.model.train()
            try:
                return graph_costs(self._train, self.model, inputs)
            except Exception as exc:  # whatever an operation without numbers makes of it
                log.debug("operations not counted, parameter bytes balanced: %s", exc)
                return None

    def _check_count(self, num_cuts: int) -> None:
        if num_cuts > len(self.boundaries):
            raise ConfigError(
                f"{num_cuts} cuts are more than the {len(self.boundaries)} boundaries of "
                f"{type(self.model).__name__}; use {len(self.boundaries) + 1} stages or fewer"
            )

    def cut(self, cuts: Sequence[str], chunks_per_stage: int = 1) -> list[nn.Module]:
        """The stages, see `cut_model`.

        Args:
            cuts: names.
            chunks_per_stage: parts that a stage has, see `Chunks`.
        """
        self._check_count(len(cuts))
        places = self._sorted(cuts)
        chunks = Chunks((len(cuts) + 1) // chunks_per_stage, chunks_per_stage)
        stages = [self._stage(places, chunks.on_stage(s)) for s in range(chunks.num_stages)]
        # A checkpoint has all state of the model: state that no stage held would be lost.
        self._add_unused(stages)
        constants = self._train.constants & self._eval.constants
        # Constants are only read: copies of them need not be kept equal.
        names = {k: v for k, v in names_by_id(self.model).items() if k not in constants}
        settle_shared(stages, names)
        return list[nn.Module](stages)

    def _sorted(self, cuts: Sequence[str]) -> list[Boundary]:
        given: dict[int, str] = {}
        places: list[Boundary] = []
        for name in cuts:
            boundary = self.find(name)
            if boundary.train in given:
                raise ConfigError(
                    f"cuts {given[boundary.train]!r} and {name!r} are the same boundary; give "
                    "each once"
                )
            given[boundary.train] = name
            places.append(boundary)
        return sorted(places, key=lambda b: b.train)

    def find(self, name: str, also: Sequence[str] = ()) -> Boundary:
        """The boundary of that name; raises ConfigError, which may propose names of `also`, too."""
        by_name = {name: b for b in self.boundaries for name in b.names}
        if name in by_name:
            return by_name[name]
        step = self._train.node_names().get(name)
        for boundary in self.boundaries:
            if boundary.train == step:
                return boundary
        raise ConfigError(self._refusal(name, nearest(name, [*also, *self.names])))

    def _refusal(self, name: str, valid: str) -> str:
        places = self._train.boundaries()
        if name not in places and name not in self._eval.boundaries():
            return f"unknown cut {name!r} of {type(self.model).__name__}; {valid}"
        place = places.get(name, -1)
        eval_place = self._eval.boundaries().get(name, -1)
        reason = self._train.blocked.get(place) or self._eval.blocked.get(eval_place)
        if reason:
            return f"cut {name!r} {reason}; {valid}"
        if place < 0 or eval_place < 0:
            return f"cut {name!r} exists in one of training and evaluation only; {valid}"
        return f"cut {name!r} leaves a stage without an operation; {valid}"

    def marked(self, places: Sequence[Boundary]) -> Stage:
        """The whole model as one stage, for training only; see `extract` on what it tells.

        Args:
            places: boundaries, increasing, of which it tells.
        """
        return self._stage((), (0,), marks=[place.train for place in places])

    def users(self, places: Sequence[Boundary]) -> dict[int, frozenset[int]]:
        """The parts that use each parameter and buffer, by its identity.

        Args:
            places: boundaries between the parts, increasing.
        """
        found: dict[int, set[int]] = {}
        for flow, starts in (
            (self._train, [place.train for place in places]),
            (self._eval, [place.eval for place in places]),
        ):
            for key, uses in flow.uses_of_state().items():
                found.setdefault(key, set()).update(bisect_right(starts, use) for use in uses)
        return {key: frozenset(used) for key, used in found.items()}

    def _stage(
        self,
        places: Sequence[Boundary],
        chunks: Sequence[int],
        marks: Sequence[int] | None = None,
    ) -> Stage:
        train_cuts, eval_cuts = [b.train for b in places], [b.eval for b in places]
        train = [extract(self._train, train_cuts, c, marks=marks) for c in chunks]
        eval_ = [extract(self._eval, eval_cuts, c) for c in chunks]
        stage = Stage()
        # Of both modes: a layer that only training uses is still this stage's.
        paths = [self._owner(p) for part in (*train, *eval_) for p in state_paths(part.graph)]
        for path in outermost(paths):
            self._attach(stage, path)
        for chunk, (in_train, in_eval) in enumerate(zip(train, eval_, strict=True)):
            stage.set_part(in_train, training=True, chunk=chunk)
            stage.set_part(in_eval, training=False, chunk=chunk)
        if self._modes is not None:
            stage.set_modes(self._modes)
        stage.training = self.model.training
        return stage

    def _owner(self, path: str) -> str:
        """The operation module that holds `path`, so that it comes along whole."""
        parts = path.split(".")
        tracer = ModuleTracer(frozenset())
        for i in range(1, len(parts)):
            owner = ".".join(parts[:i])
            if tracer.is_leaf_module(self.model.get_submodule(owner), owner):
                return owner
        return path

    def _attach(self, stage: Stage, path: str) -> None:
        if path in self._graphs.constants:
            attach(stage, path, self._graphs.constants[path], persistent=False)
            return
        owner, _, name = path.rpartition(".")
        # What the model does not save its stages must not save either.
        hidden = self.model.get_submodule(owner)._non_persistent_buffers_set
        attach(stage, path, find_attribute(self.model, path), persistent=name not in hidden)

    def _add_unused(self, stages: Sequence[Stage]) -> None:
        """Gives the state that no operation uses, or a second name of it, a stage too."""
        known = {name for stage in stages for name, _ in named_state(stage)}
        holder = {id(tensor): stage for stage in stages for tensor in tensors_of(stage)}
        for name, tensor in named_state(self.model):
            if name not in known:
                # A tied name goes where its tensor is, so that it stays one object.
                self._attach(holder.get(id(tensor), stages[-1]), name)
