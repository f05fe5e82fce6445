"""Samples become one micro-batch: inputs and targets, both stacked leaf by leaf.

    ({"image": x0, "mask": m0}, 3)
    ({"image": x1, "mask": m1}, 5)     ->     ({"image": x, "mask": m}, tensor([3, 5]))

The result holds tensors only, so that it can be sent, pinned and moved as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.recipe import DataSets, SampleSet, Stream
from bundlerun.workers.values.nest import Branch, branch_of, entries, leaves, like, mapped

TARGET_NAMES = ("target", "targets", "label", "labels")
"""Entries of a sample that is a dict: the one of these is the target, the rest the input."""
_OWN_COLLATES = ("collate", "collate_fn")
_NUMBERS = (bool, int, float, complex)
_RIGHT = (
    "a tensor, a number, a numpy array, or dicts, tuples and lists of these; "
    "leave it out of the sample, or make a number of it"
)


class Parts(NamedTuple):
    """The two halves of a micro-batch, nested tensors."""

    inputs: tuple[object, ...]
    """What the model is called with; one item unless the input is a tuple."""
    target: object


@dataclass(frozen=True, slots=True)
class Collate:
    """How the samples of a micro-batch become one.

    Args:
        own: the data set's or the recipe's way; None: stacked leaf by leaf.
        split: gives (input, target) of what `own` gives, or else of a sample; None: by the
            sample's own form.
        mix: what becomes of the joined inputs and targets; None: they stay as they are.
    """

    own: Callable[[list[Any]], Any] | None = None
    split: Callable[[Any], Any] | None = None
    mix: Callable[[tuple[Any, ...], Any], tuple[tuple[Any, ...], Any]] | None = None

    @classmethod
    def of(cls, data: DataSets, samples: SampleSet | Stream) -> Collate:
        """What the recipe says for one of its data sets, or else the data set."""
        found = data.collate
        for name in _OWN_COLLATES:
            # The recipe's own comes first; a data set of another library may bring one.
            found = found or getattr(samples, name, None)
        return cls(found, data.split, data.mix if samples is data.train else None)

    def __call__(self, samples: Sequence[object], indices: Sequence[int]) -> Parts:
        """The micro-batch; `indices` names the samples in what goes wrong.

        Raises:
            ConfigError: a sample is no (input, target), holds what cannot be sent, or is of
                another shape than the others.
        """
        joined = self._joined(samples, indices)
        if self.mix is None:
            return joined
        mixed: object = self.mix(*joined)
        if not isinstance(mixed, (tuple, list)) or len(mixed) != 2:
            raise ConfigError(
                f"DataSets(mix=...) gives a {type(mixed).__name__}, not (inputs, target); return "
                "these two, such as they are given"
            )
        inputs, target = mixed
        who = f"what mix gives of the samples {_list_of(indices)}"
        found = _all_tensors(inputs, f"the input of {who}")
        return Parts(_arguments(found), _all_tensors(target, f"the target of {who}"))

    def _joined(self, samples: Sequence[object], indices: Sequence[int]) -> Parts:
        if self.own is not None:
            who = f"the micro-batch that collate made of the samples {_list_of(indices)}"
            batch, target = self._halves(self.own(list(samples)), who)
            # Checked, whatever a user's collate gives: it has to be sent and pinned, too.
            joined = _all_tensors(batch, f"the input of {who}")
            return Parts(_arguments(joined), _all_tensors(target, f"the target of {who}"))
        halves = [self._halves(s, f"sample {i}") for s, i in zip(samples, indices, strict=True)]
        columns = [_arguments(batch) for batch, _ in halves]
        # Several inputs are told apart before lists of numbers are taken for vectors.
        inputs = [_Column([row[0] for row in columns], indices, "input")]
        # A tuple is several inputs: each is stacked, and named in errors, by itself.
        if any(isinstance(batch, tuple) for batch, _ in halves):
            _same_branch([batch for batch, _ in halves], indices, "input")
            rows = zip(*columns, strict=True)
            inputs = [_Column(row, indices, f"input[{n}]") for n, row in enumerate(rows)]
        target = _Column([target for _, target in halves], indices, "target").stacked()
        return Parts(tuple(column.stacked() for column in inputs), target)

    def _halves(self, sample: Any, who: str) -> tuple[Any, Any]:  # noqa: ANN401 (a user's sample)
        # Before the form is looked at: split may turn anything into (input, target).
        if self.split is not None:
            sample = self.split(sample)
            who = f"what split gives of {who}"
        if isinstance(sample, Mapping):
            return _halves_of_dict(sample, who)
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            size = f" of {len(sample)}" if isinstance(sample, (tuple, list)) else ""
            raise ConfigError(
                f"{who} is a {type(sample).__name__}{size}, not (input, target); return these two, "
                "or give DataSets(split=...) a function that makes them of it"
            )
        return sample[0], sample[1]


def _halves_of_dict(sample: Mapping[Any, Any], who: str) -> tuple[Any, Any]:
    named = [name for name in TARGET_NAMES if name in sample]
    rest = {key: value for key, value in sample.items() if key not in named}
    if len(named) != 1 or not rest:
        keys = ", ".join(map(repr, sample)) or "none"
        raise ConfigError(
            f"{who} is a dict with the keys {keys}, not (input, target); let one of them be "
            f"{' or '.join(map(repr, TARGET_NAMES))}, return (input, target), or give "
            "DataSets(split=...) a function that makes these of it"
        )
    return next(iter(rest.values())) if len(rest) == 1 else rest, sample[named[0]]


def _arguments(batch: object) -> tuple[Any, ...]:
    return tuple(batch) if isinstance(batch, tuple) else (batch,)


class _Column(NamedTuple):
    """The same place in each of the samples."""

    values: Sequence[object]
    indices: Sequence[int]
    place: str

    def stacked(self) -> object:
        """The values along a new first dimension."""
        # One leaf is enough: where others are holders, the leaves' own check names the odd sample.
        if any(map(_is_leaf, self.values)):
            return self._stacked_leaves()
        first = self.values[0]
        branch = _same_branch(self.values, self.indices, self.place)
        # One row per sample; the keys have to agree before columns can be made of rows.
        rows = [list(entries(value, branch)) for value in self.values]
        for row, index in zip(rows, self.indices, strict=True):
            if [step for step, _ in row] != [step for step, _ in rows[0]]:
                raise ConfigError(
                    f"the {self.place} of sample {index} has {_steps(row)}, that of sample "
                    f"{self.indices[0]} {_steps(rows[0])}; give all samples the same, in one "
                    "order, or DataSets(collate=...) a function that joins them"
                )
        items = [
            _Column([row[n][1] for row in rows], self.indices, self.place + step).stacked()
            for n, (step, _) in enumerate(rows[0])
        ]
        return like(first, branch, items)

    def _stacked_leaves(self) -> Tensor:
        tensors = [
            _tensor(value, f"the {self.place} of sample {index}")
            for value, index in zip(self.values, self.indices, strict=True)
        ]
        for tensor, index in zip(tensors, self.indices, strict=True):
            if tensor.shape != tensors[0].shape:
                raise ConfigError(
                    f"the {self.place} of sample {index} has shape {list(tensor.shape)}, that of "
                    f"sample {self.indices[0]} {list(tensors[0].shape)}; make all samples of one "
                    "shape, or give DataSets(collate=...) a function that joins them"
                )
        return torch.stack(tensors)


def _same_branch(values: Sequence[object], indices: Sequence[int], place: str) -> Branch:
    first = branch_of(values[0])
    for value, index in zip(values, indices, strict=True):
        if branch_of(value) != first:
            raise ConfigError(
                f"the {place} of sample {index} is of type {type(value).__name__}, that of sample "
                f"{indices[0]} of type {type(values[0]).__name__}; make all samples alike"
            )
    assert first is not None
    return first


def _is_leaf(value: object) -> bool:
    return branch_of(value) is None or _is_array(value)


def _is_array(value: object) -> bool:
    """Whether a list or tuple is numbers through and through, and so one tensor."""
    if branch_of(value) not in ("list", "tuple") or not value:
        return False
    assert isinstance(value, (list, tuple))
    return all(isinstance(item, _NUMBERS) or _is_array(item) for item in value)


def _tensor(value: object, who: str) -> Tensor:
    """A leaf as a tensor."""
    if isinstance(value, Tensor):
        return value
    try:
        # Only known types: as_tensor would take other objects apart by rules nobody expects.
        if isinstance(value, (*_NUMBERS, np.ndarray, np.generic)) or _is_array(value):
            return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as exc:
        # An array of texts, a list that is no rectangle, a number beyond 64 bits.
        raise ConfigError(f"{who} is no tensor: {exc}; right is {_RIGHT}") from exc
    shown = f" ({value!r:.40})" if isinstance(value, str) else ""
    raise ConfigError(f"{who} is of type {type(value).__name__}{shown}; right is {_RIGHT}")


def _all_tensors(value: object, who: str) -> object:
    # A first look only for the places: `mapped` does not know them when it finds a wrong leaf.
    for leaf in leaves(value):
        _tensor(leaf.value, f"{who}, at {leaf.place}," if leaf.place else who)
    return mapped(lambda leaf: _tensor(leaf, who), value)


def _steps(row: Sequence[tuple[str, object]]) -> str:
    return ", ".join(step for step, _ in row) or "nothing"


def _list_of(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:4]))
    return shown + (", ..." if len(indices) > 4 else "")
