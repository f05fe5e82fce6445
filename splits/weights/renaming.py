"""Pure: which names of a file are which of the model, by the rule that fits most of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

from bundlerun.splits.weights.reading import Piece, Shape
from bundlerun.splits.weights.tables.dialects import DIALECTS, Dialect, in_a_row

_DEEPEST = 3
"""Modules that may hold a whole model of another program, one in the other."""
_COMMON = 1 / 3
"""Of all names; a prefix of fewer is no such module."""
_RECOGNISED = 1 / 2
"""Of all names, before they are taken for a library's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Renaming:
    """Where the tensors of a model come from, by one rule.

    Args:
        rule: in words.
        sources: of each name of the model the pieces that it is joined of; whatever their shapes.
        may_be_flat: whether a layer may be a convolution in one of them and linear in the other.
    """

    rule: str
    sources: Mapping[str, tuple[Piece, ...]]
    may_be_flat: bool = False

    def fits(self, own: Shape, given: Shape) -> bool:
        """Whether the numbers are the same ones; dimensions of 1 are written or not."""
        if [n for n in own if n != 1] == [n for n in given if n != 1]:
            return True
        if not (self.may_be_flat and own and given and own[0] == given[0]):
            return False
        # A convolution over all of its input does what a linear layer does after flattening.
        return {len(own), len(given)} == {2, 4} and prod(own) == prod(given)

    def fitting(self, own: Mapping[str, Shape], given: Mapping[str, Shape]) -> int:
        """Tensors of the model for which there is one of the same shape."""
        return sum(
            self.fits(own[name], joined_shape(pieces, given))
            for name, pieces in self.sources.items()
        )


def joined_shape(pieces: Sequence[Piece], given: Mapping[str, Shape]) -> Shape:
    """Of pieces that are joined along their first dimension."""
    first = given[pieces[0].name]
    if not first:
        return first
    return (sum(given[p.name][0] // p.of for p in pieces), *first[1:])


def best_renaming(own: Mapping[str, Shape], given: Mapping[str, Shape]) -> Renaming:
    """The rule by which most tensors of the model have one in the file; the simplest of equals.

    Args:
        own: shapes of the model's tensors.
        given: shapes of the file's.
    """
    best, most = Renaming(rule="names as they are", sources={}), -1
    for candidate in _candidates(own, given):
        count = candidate.fitting(own, given)
        if count > most:
            best, most = candidate, count
        if most == len(own):
            break
    return best


def _candidates(own: Mapping[str, Shape], given: Mapping[str, Shape]) -> Iterator[Renaming]:
    own_prefixes, given_prefixes = _prefixes(own), _prefixes(given)
    for add in own_prefixes:
        for drop in given_prefixes:
            yield _by_prefix(own, given, drop, add)
    theirs = list(_spoken(given, given_prefixes))
    for ours in _spoken(own, own_prefixes) if theirs else ():
        for other in theirs:
            if ours.dialect.family == other.dialect.family and ours.dialect is not other.dialect:
                yield _by_library(ours, other, given)


def _prefixes(names: Mapping[str, Shape]) -> list[str]:
    """Modules that hold much of a model; nothing first."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.split(".")[:-1][:_DEEPEST]
        counts.update(accumulate(f"{part}." for part in parts))
    return ["", *(p for p, count in counts.items() if count >= _COMMON * len(names))]


def _by_prefix(
    own: Mapping[str, Shape], given: Mapping[str, Shape], drop: str, add: str
) -> Renaming:
    sources = {}
    rule = _prefix_rule(drop, add)
    for name in given:
        known = _of_norm(name)
        # What is outside of that module, such as a head, is not renamed.
        renamed = add + known[len(drop) :] if known.startswith(drop) else known
        if renamed in own:
            sources[renamed] = (Piece(name),)
        elif known in own:
            sources.setdefault(known, (Piece(name),))
        if known != name:
            rule = f"{_prefix_rule(drop, add)}, gamma and beta of norms as weight and bias"
    return Renaming(rule=rule, sources=sources)


def _of_norm(name: str) -> str:
    """What the oldest files of BERT and its like, made for TensorFlow, call otherwise."""
    for old, new in (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias")):
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def _prefix_rule(drop: str, add: str) -> str:
    if drop and add:
        return f"names with {add!r} in place of {drop!r}"
    if drop or add:
        return f"names {'without' if drop else 'with'} {(drop or add)!r}"
    return "names as they are"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spoken:
    """Tensors that a library calls so: what we call them, and what is zeros of their shape."""

    dialect: Dialect
    tensors: Mapping[str, tuple[str, ...]]
    zeros: Mapping[str, tuple[str, ...]]


def _spoken(names: Mapping[str, Shape], prefixes: Sequence[str]) -> Iterator[_Spoken]:
    """Yields the libraries that call most of these tensors so."""
    for dialect in DIALECTS:
        for prefix in prefixes:
            # A head is often outside of the module that holds the rest.
            outer = [p for p in prefixes if prefix.startswith(p) and p != prefix]
            read = _read(dialect.read, names, [prefix, *outer])
            if len(read) < _RECOGNISED * len(names):
                continue
            zeros = _read(dialect.zeros_like, names, [prefix, *outer])
            every = (our for found in (read, zeros) for ours in found.values() for our in ours)
            placed = in_a_row(every)
            tensors, left_out = (
                {name: tuple(placed[our] for our in ours) for name, ours in found.items()}
                for found in (read, zeros)
            )
            yield _Spoken(dialect=dialect, tensors=tensors, zeros=left_out)


def _read(
    read: Callable[[str], tuple[str, ...]], names: Iterable[str], prefixes: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    found = {}
    for name in names:
        tried = (read(name.removeprefix(prefix)) for prefix in prefixes)
        found[name] = next((ours for ours in tried if ours), ())
    return {name: ours for name, ours in found.items() if ours}


def _by_library(own: _Spoken, other: _Spoken, given: Mapping[str, Shape]) -> Renaming:
    pieces = {our: Piece(n, is_zeros=True) for n, ours in other.zeros.items() for our in ours}
    for name, ours in other.tensors.items():
        count = len(ours)
        # Equal parts along the first dimension, or it is another thing than its name says.
        if count == 1 or (given[name] and given[name][0] % count == 0):
            pieces |= {our: Piece(name, index, count) for index, our in enumerate(ours)}
    sources = {
        name: _joined([pieces[our] for our in ours])
        for name, ours in own.tensors.items()
        if all(our in pieces for our in ours)
    }
    of, to = other.dialect, own.dialect
    rule = f"names of a {to.family} of {of.library} as {to.library} has them"
    return Renaming(rule=rule, sources=sources, may_be_flat=True)


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces; all parts of one tensor in order are that tensor."""
    first = pieces[0]
    if pieces == [Piece(first.name, n, first.of) for n in range(first.of)]:
        return (Piece(first.name),)
    return tuple(pieces)
