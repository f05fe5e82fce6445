"""A model, and every place where replay can cut it: where one of its modules is entered."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.splits.balance import Option, cheapest_options
from bundlerun.splits.costs import StageCosts
from bundlerun.splits.cutter import Place, Places
from bundlerun.splits.modes import modes_kept
from bundlerun.splits.replay.look import look_twice
from bundlerun.splits.replay.record import Record
from bundlerun.splits.replay.replica import Switch, replica_of
from bundlerun.splits.replay.script import Route
from bundlerun.splits.replay.stage import (
    Cutting,
    Kind,
    ReplayStage,
    described,
    form_in,
    kind_of,
)
from bundlerun.splits.shared import settle_shared
from bundlerun.splits.state import named_state, names_by_id

_MODES = (True, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A place where the model can be cut."""

    names: tuple[str, ...]
    """Modules that are entered there, from the outermost in."""
    train: int
    """Calls before it in training."""
    eval: int
    """The same in evaluation."""

    def calls(self, training: bool) -> int:
        """Calls before it in a mode."""
        return self.train if training else self.eval


class ReplayedModel:
    """A model that stages run themselves.

    Args:
        model: on any device.
        inputs: what it is called with; only shapes and types count.

    Raises:
        ConfigError: it cannot be run without numbers, or not twice alike.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[object]) -> None:
        self.model = model
        self._inputs = tuple(inputs)
        tensors = [t for _, t in named_state(model)]
        device = tensors[0].device if tensors else torch.device("cpu")
        # A model without numbers is thought of where it would be made.
        self._device = torch.device("cpu") if device.type == "meta" else device
        self._records: dict[bool, Record] = {}
        self._kinds: dict[bool, Kind] = {}
        with modes_kept(model):
            for training in _MODES:
                model.train(training)
                with torch.set_grad_enabled(training):
                    self._kinds[training] = kind_of(training, self._device)
                    self._records[training] = self._looked()

    def _looked(self) -> Record:
        try:
            found, why = look_twice(self.model, self._inputs, self._device, counts=True)
        except Exception as exc:
            raise ConfigError(
                f"cannot cut {self._name} by replay: its forward does not run without numbers "
                f"({type(exc).__name__}: {(str(exc).splitlines() or [''])[0]}); return the list "
                "of stages from build, or use --shape 1"
            ) from exc
        if why:
            raise ConfigError(
                f"cannot cut {self._name} by replay: its forward {why}, by random numbers or by "
                "what an earlier call has left; let it depend on its configuration only, or use "
                "--shape 1"
            )
        return found

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    # --- where it can be cut

    @cached_property
    def boundaries(self) -> list[Entry]:
        """Where the model can be cut, in order."""
        train, eval_ = (self._records[mode].entries for mode in _MODES)
        places: dict[tuple[int, int], list[str]] = {}
        for name, number in train.items():
            # Both modes need it: a stage holds the same modules in each.
            if name in eval_:
                places.setdefault((number, eval_[name]), []).append(name)
        found: list[Entry] = []
        for (number, other), names in sorted(places.items()):
            entry = Entry(names=tuple(names), train=number, eval=other)
            # Increasing in both: else two cuts would cross each other in one mode.
            if not self._refused(entry) and (not found or other > found[-1].eval):
                found.append(entry)
        return found

    def _refused(self, entry: Entry) -> str:
        """Why there is no cut at an entry; nothing where there can be one."""
        for training in _MODES:
            record, number = self._records[training], entry.calls(training)
            if not number:
                return "leaves a stage without an operation"
            if record.undecided.spans(number):
                return "comes between a random number and its use as a plain one"
            if record.shared_writes(number):
                return "sends tensors apart that share memory, which is overwritten behind it"
        shared = self._shared(entry)
        return f"puts {' = '.join(shared)} into two stages" if shared else ""

    def _shared(self, entry: Entry) -> list[str]:
        """The names of a buffer of the model that is used on both sides."""
        # A parameter may be in several stages, which sum its gradients; nobody sums buffers.
        parameters = {id(parameter) for parameter in self.model.parameters()}
        for key, names in self._state_names.items():
            is_free = key in parameters or key in self._constants
            if not is_free and self._is_on_both_sides(key, entry):
                return names
        return []

    def _is_on_both_sides(self, key: int, entry: Entry) -> bool:
        sides = {
            use >= entry.calls(training)
            for training in _MODES
            for use in self._records[training].state_uses.get(key, ())
        }
        return len(sides) > 1

    def _shared_bytes(self, entry: Entry) -> int:
        """Bytes of the parameters that are used on both sides, whose gradients cross."""
        shared = (p for p in self.model.parameters() if self._is_on_both_sides(id(p), entry))
        return sum(p.numel() * p.element_size() for p in shared)

    @cached_property
    def _state_names(self) -> dict[int, list[str]]:
        return names_by_id(self.model)

    @cached_property
    def _constants(self) -> set[int]:
        """Buffers that several stages may hold: unsaved, and only read."""
        modules = self.model.modules()
        unsaved = {id(m._buffers[name]) for m in modules for name in m._non_persistent_buffers_set}
        written = {key for record in self._records.values() for key in record.state_writes}
        return unsaved - written

    @property
    def names(self) -> list[str]:
        """The valid cut names."""
        return [name for boundary in self.boundaries for name in boundary.names]

    def find(self, name: str, also: Sequence[str] = ()) -> Entry:
        """The boundary of that name; raises ConfigError, which may propose names of `also`, too."""
        # As in a graph: by itself, a number would count parts.
        meant = name[1:] if re.fullmatch(r"_\d+", name) and not self._has(name) else name
        for boundary in self.boundaries:
            if meant in boundary.names:
                return boundary
        valid = [f"_{own}" if own.isdigit() else own for own in self.names]
        raise ConfigError(f"{self._refusal(name)}; {nearest(name, [*also, *valid])}")

    def _refusal(self, name: str) -> str:
        records = self._records.values()
        if all(name in record.entries for record in records):
            train, eval_ = (self._records[mode].entries[name] for mode in _MODES)
            why = self._refused(Entry(names=(name,), train=train, eval=eval_))
            return f"cut {name!r} {why or 'comes in another order in training'}"
        for record in records:
            if name in record.inside:
                return f"cut {name!r} is inside an autograd function or torch.vmap"
            if name in record.recomputed:
                return (
                    f"cut {name!r} is inside a call of torch.utils.checkpoint, which would be "
                    "recomputed in both stages"
                )
            if name not in record.entries and record.failure and self._has(name):
                return (
                    f"cut {name!r} comes after the model {record.failure}, which stages behind it "
                    "would have to know"
                )
        if self._has(name):
            return f"cut {name!r} is a module that the forward does not call in both modes"
        return f"unknown cut {name!r} of {self._name}"

    def _has(self, name: str) -> bool:
        return any(name == own for own, _ in self.model.named_modules())

    # --- costs

    def equal_cuts(
        self, num_parts: int, *, shares: Sequence[float] = (), inputs: Sequence[object] = ()
    ) -> tuple[str, ...]:
        """Cuts into parts of about equal operations, of about equal parameter bytes without any.

        Args:
            num_parts: parts.
            shares: of the whole for each part, any unit; nothing: equal ones.
            inputs: those of the model are known.

        Raises:
            ConfigError: the model has too few boundaries.
        """
        self._check_count(num_parts - 1)
        options = [
            Option(
                place=b.train,
                price=self.crossing_bytes(b) + self._shared_bytes(b),
                name=b.names[0],
            )
            for b in self.boundaries
        ]
        return cheapest_options(self._call_costs, options, shares or [1] * num_parts)

    def places(self, inputs: Sequence[object] = ()) -> Places:
        """Where the model can be cut."""
        record = self._records[True]
        done = list(accumulate((call.operations for call in record.calls), initial=0))
        sizes = list(accumulate(self._parameter_costs(), initial=0))
        places = [
            Place(
                names=boundary.names,
                operations=0 if record.failure else done[boundary.train],
                parameter_bytes=sizes[boundary.train],
                crossing_bytes=self.crossing_bytes(boundary),
            )
            for boundary in self.boundaries
        ]
        total = 0 if record.failure else done[-1]
        return Places(places=places, operations=total, parameter_bytes=sizes[-1])

    def _parameter_costs(self) -> list[int]:
        """Bytes of the parameters that each call is the first to use."""
        record = self._records[True]
        costs = [0] * len(record.calls)
        for parameter in self.model.parameters():
            # What was not seen comes after the end of what was.
            uses = record.state_uses.get(id(parameter), [len(costs) - 1])
            costs[min(uses)] += parameter.numel() * parameter.element_size()
        return costs

    @cached_property
    def _call_costs(self) -> list[int]:
        record = self._records[True]
        costs = [call.operations for call in record.calls]
        if any(costs) and not record.failure:
            return costs
        return self._parameter_costs()

    def crossing_bytes(self, boundary: Entry) -> int:
        """Bytes of what crosses a boundary in training."""
        record = self._records[True]
        tensors = [record.looks[key] for key in record.crossing(boundary.train)]
        return sum(t.numel() * t.element_size() for t in tensors)

    def sent_bytes(self, boundary: Entry) -> tuple[int, int]:
        """Bytes of what crosses a boundary in training, and of the gradients that come back."""
        record = self._records[True]
        tensors = [record.looks[key] for key in record.crossing(boundary.train)]
        sizes = [(t.numel() * t.element_size(), t.requires_grad) for t in tensors]
        return sum(size for size, _ in sizes), sum(size for size, has_one in sizes if has_one)

    def users(self, places: Sequence[Entry]) -> dict[int, frozenset[int]]:
        """The parts that use each parameter and buffer, by its identity, cut at `places`."""
        return {key: frozenset(used) for key, used in self._owners(places)}

    def _check_count(self, num_cuts: int) -> None:
        if num_cuts > len(self.boundaries):
            failures = [r.failure for r in self._records.values() if r.failure]
            raise ConfigError(
                f"{num_cuts} cuts are more than the {len(self.boundaries)} boundaries of "
                f"{self._name}"
                + (f", which {failures[0]} and cannot be cut behind that" if failures else "")
                + f"; use {len(self.boundaries) + 1} stages or fewer"
            )

    # --- the stages

    def cut(self, cuts: Sequence[str], chunks_per_stage: int = 1) -> list[nn.Module]:
        """The stages of the model, one chunk more than cuts.

        Args:
            cuts: names; any order.
            chunks_per_stage: parts that a stage has.

        Raises:
            ConfigError: a cut is unknown or given twice, or divides what belongs together.
        """
        places = self._sorted(cuts)
        names = [place.names[0] for place in places]
        form = form_in(described(self._inputs))
        routes = {(self._kinds[m], form): Route.of(self._records[m], names) for m in _MODES}
        owners = dict(self._owners(places))
        chunks = Chunks((len(cuts) + 1) // chunks_per_stage, chunks_per_stage)
        stages: list[nn.Module] = [
            self._stage(places, names, routes, owners, chunks.on_stage(stage))
            for stage in range(chunks.num_stages)
        ]
        # Constants are only read: copies of them need not be kept equal.
        kept = {k: found for k, found in self._state_names.items() if k not in self._constants}
        settle_shared(stages, kept)
        return stages

    def _sorted(self, cuts: Sequence[str]) -> list[Entry]:
        given: dict[int, str] = {}
        for name in cuts:
            place = self.find(name).train
            if place in given:
                raise ConfigError(
                    f"cuts {given[place]!r} and {name!r} are the same boundary; give each once"
                )
            given[place] = name
        return sorted(map(self.find, cuts), key=lambda entry: entry.train)

    def _owners(self, places: Sequence[Entry]) -> Iterator[tuple[int, set[int]]]:
        """The parts that use each parameter and buffer, by its identity."""
        starts = {mode: [place.calls(mode) for place in places] for mode in _MODES}
        used: dict[int, set[int]] = {}
        for mode, record in self._records.items():
            for key, uses in record.state_uses.items():
                used.setdefault(key, set()).update(bisect_right(starts[mode], n) for n in uses)
        entered = self._entered_in(starts[True])
        last = {len(places)} if any(r.failure for r in self._records.values()) else set()
        for path, module in self.model.named_modules():
            tensors = [*module._parameters.values(), *module._buffers.values()]
            own = [id(tensor) for tensor in tensors if tensor is not None]
            # What no operation uses goes where the rest of its module is, as a counter does; else
            # where its module is entered, or behind what could be foreseen.
            rest = next((used[key] for key in own if key in used), None)
            for key in own:
                yield key, used.get(key) or rest or last or {entered[path]}

    def _entered_in(self, starts: Sequence[int]) -> dict[str, int]:
        """The part in which each module is entered; of one that is not, that of what holds it."""
        record = self._records[True]
        found = {"": len(starts)}
        for path, _ in self.model.named_modules():
            if path in record.entries:
                found[path] = bisect_right(starts, record.entries[path])
            elif path:
                found[path] = found[path.rpartition(".")[0]]
        return found

    def _stage(
        self,
        places: Sequence[Entry],
        names: Sequence[str],
        routes: dict[tuple[Kind, str], Route],
        owners: dict[int, set[int]],
        parts: Sequence[int],
    ) -> ReplayStage:
        switch = Switch()
        own = {key for key, used in owners.items() if used & set(parts)}
        replica = replica_of(self.model, own, switch)
        parameters = [p for p in self.model.parameters() if id(p) in own]
        used = [[p for p in parameters if part in owners[id(p)]] for part in parts]
        cutting = Cutting(cuts=names, parts=parts, routes=routes, model_name=self._name)
        return ReplayStage(replica, switch, cutting, used, self._costs(places, parts, parameters))

    def _costs(
        self, places: Sequence[Entry], parts: Sequence[int], parameters: Sequence[Tensor]
    ) -> StageCosts | None:
        record = self._records[True]
        if record.failure:
            return None
        ends = [0, *(place.train for place in places), len(record.calls)]
        calls = [call for p in parts for call in record.calls[ends[p] : ends[p + 1]]]
        return StageCosts(
            operations=sum(call.operations for call in calls),
            sent_bytes=sum(self.crossing_bytes(places[p]) for p in parts if p < len(places)),
            parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        )
