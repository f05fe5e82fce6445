"""Pure: which names of a file are which of the model, by the rule that fits most of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from bundlerun.splits.weights.dialects import DIALECTS, Dialect
from bundlerun.splits.weights.reading import Piece, Shape

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
    """

    rule: str
    sources: Mapping[str, tuple[Piece, ...]]

    def fitting(self, own: Mapping[str, Shape], given: Mapping[str, Shape]) -> int:
        """Tensors of the model for which there is one of the same shape."""
        return sum(
            fits(own[name], joined_shape(pieces, given)) for name, pieces in self.sources.items()
        )


def joined_shape(pieces: Sequence[Piece], given: Mapping[str, Shape]) -> Shape:
    """Of pieces that are joined along their first dimension."""
    first = given[pieces[0].name]
    if not first:
        return first
    return (sum(given[p.name][0] // p.of for p in pieces), *first[1:])


def fits(own: Shape, given: Shape) -> bool:
    """Whether the numbers are the same ones; dimensions of 1 are written or not."""
    return [n for n in own if n != 1] == [n for n in given if n != 1]


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
    for library, of_own in _spoken(own, own_prefixes):
        for other, of_given in _spoken(given, given_prefixes):
            if library.family == other.family and library is not other:
                yield _by_library(library, of_own, other, of_given, given)


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
    for name in given:
        # What is outside of that module, such as a head, is not renamed.
        renamed = add + name[len(drop) :] if name.startswith(drop) else name
        if renamed in own:
            sources[renamed] = (Piece(name),)
        elif name in own:
            sources.setdefault(name, (Piece(name),))
    return Renaming(rule=_prefix_rule(drop, add), sources=sources)


def _prefix_rule(drop: str, add: str) -> str:
    if drop and add:
        return f"names with {add!r} in place of {drop!r}"
    if drop or add:
        return f"names {'without' if drop else 'with'} {(drop or add)!r}"
    return "names as they are"


def _spoken(
    names: Mapping[str, Shape], prefixes: Sequence[str]
) -> Iterator[tuple[Dialect, dict[str, tuple[str, ...]]]]:
    """Yields the libraries that call most of these tensors so, and what we call them."""
    for dialect in DIALECTS:
        for prefix in prefixes:
            # A head is often outside of the module that holds the rest.
            outer = [p for p in prefixes if prefix.startswith(p) and p != prefix]
            read = {name: _read(dialect, name, [prefix, *outer]) for name in names}
            known = {name: ours for name, ours in read.items() if ours}
            if len(known) >= _RECOGNISED * len(names):
                yield dialect, known


def _read(dialect: Dialect, name: str, prefixes: Sequence[str]) -> tuple[str, ...]:
    found = (dialect.read(name.removeprefix(prefix)) for prefix in prefixes)
    return next((ours for ours in found if ours), ())


def _by_library(
    library: Dialect,
    of_own: Mapping[str, tuple[str, ...]],
    other: Dialect,
    of_given: Mapping[str, tuple[str, ...]],
    given: Mapping[str, Shape],
) -> Renaming:
    pieces: dict[str, Piece] = {}
    for name, ours in of_given.items():
        count = len(ours)
        # Equal parts along the first dimension, or it is another thing than its name says.
        if count == 1 or (given[name] and given[name][0] % count == 0):
            pieces |= {our: Piece(name, index, count) for index, our in enumerate(ours)}
    sources = {
        name: _joined([pieces[our] for our in ours])
        for name, ours in of_own.items()
        if all(our in pieces for our in ours)
    }
    rule = f"names of a {library.family} of {other.library} as {library.library} has them"
    return Renaming(rule=rule, sources=sources)


def _joined(pieces: list[Piece]) -> tuple[Piece, ...]:
    """The pieces; all parts of one tensor in order are that tensor."""
    first = pieces[0]
    if [tuple(p) for p in pieces] == [(first.name, n, first.of) for n in range(first.of)]:
        return (Piece(first.name),)
    return tuple(pieces)
