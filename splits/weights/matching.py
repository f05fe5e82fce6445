"""Pure: what of a model a file has, what begins anew, and where the file is of another model."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.splits.weights.reading import Piece, Shape
from bundlerun.splits.weights.renaming import Renaming, best_renaming, joined_shape

AUTO, LAST, NONE = "auto", "last", "off"
"""What --new-head says besides names."""
_STATISTICS = ("running_mean", "running_var")
_LEAST_LOADED = 1 / 2
"""Of a model's tensors, where those at its end are missing in a file."""
_NUM_SHOWN = 3
_LEARNT = (".weight", ".gamma")
"""Ends of names in a file that are no buffers, such as a mask that is called `bias`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """What of a model counts for a match: its tensors in order.

    Args:
        name: of the model, for messages.
        shapes: of all that it saves, by name.
        computed: names of buffers that the model makes itself, and needs from no file.
        twins: names of one and the same tensor, by each of them.
        num_outputs: of the model; 0: not known.
    """

    name: str
    shapes: Mapping[str, Shape]
    computed: Collection[str] = ()
    twins: Mapping[str, Sequence[str]] = field(default_factory=dict)
    num_outputs: int = 0

    @staticmethod
    def of(
        model: nn.Module,
        name: str,
        num_outputs: int,
        *,
        name_of: Callable[[str], str] = str,
        is_own: Callable[[str], bool] = lambda _: False,
    ) -> Outline:
        """That of an unsplit model, on any device.

        Args:
            name_of: gives the name that a file has for one of the model.
            is_own: whether the model has a tensor for itself, and no file.
        """
        state = {name_of(k): v for k, v in model.state_dict(keep_vars=True).items()}
        names: dict[int, list[str]] = {}
        for key, tensor in state.items():
            names.setdefault(id(tensor), []).append(key)
        computed = {
            key
            for key, tensor in state.items()
            if is_own(key)
            or (not isinstance(tensor, nn.Parameter) and not key.endswith(_STATISTICS))
        }
        return Outline(
            name=name,
            shapes={key: tuple(tensor.shape) for key, tensor in state.items()},
            computed=computed,
            twins={key: names[id(tensor)] for key, tensor in state.items()},
            num_outputs=num_outputs,
        )

    @property
    def needed(self) -> list[str]:
        """Names of what a file should have: all that is learnt."""
        return [name for name in self.shapes if name not in self.computed]

    def last(self) -> set[str]:
        """Names in the last module that has parameters."""
        owners = [_owner(name) for name in self.needed]
        return {name for name in self.shapes if owners and _owner(name) == owners[-1]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Where the tensors of a model come from.

    Args:
        rule: by which names were brought together, in words.
        sources: pieces of the file, by name of the model.
        fresh: names of the model that begin anew.
        left: names of the file that nothing takes.
        shapes: of what is in the file for names that begin anew.
    """

    rule: str
    sources: Mapping[str, Sequence[Piece]]
    fresh: Sequence[str]
    left: Sequence[str]
    shapes: Mapping[str, Shape]


def match(outline: Outline, given: Mapping[str, Shape], new_head: str, source: str) -> Match:
    """Finds for each tensor of the model what it begins with.

    Args:
        outline: of the model.
        given: shapes of the file's tensors.
        new_head: "auto": layers whose outputs are as many as the model's begin anew where the file
            has another number; and so do those at the model's end that the file lacks. "last": the
            last layer does, in any case. "off": none does. Else names of modules, or patterns.
        source: what the file is called, for messages.

    Raises:
        ConfigError: the file is of another model.
    """
    renaming = best_renaming(outline.shapes, given)
    found = {name: joined_shape(p, given) for name, p in renaming.sources.items()}
    chosen = _chosen(outline, new_head)
    other = [n for n, shape in found.items() if not renaming.fits(outline.shapes[n], shape)]
    bad = [n for n in other if n not in chosen]
    fresh = set(chosen)
    if bad and new_head == AUTO and _is_other_head(outline, {n: found[n] for n in bad}):
        fresh |= {name for name in outline.shapes if _owner(name) in {_owner(n) for n in bad}}
        bad = []
    sources = {n: p for n, p in renaming.sources.items() if n not in fresh and n not in other}
    missing = [n for n in outline.needed if n not in fresh and not _has(n, outline, sources)]
    if new_head == AUTO and _is_end(outline, missing, sources):
        fresh |= set(missing)
        missing = []
    missing = [name for name in missing if name not in bad]
    if bad or missing:
        raise ConfigError(_mismatch(outline, given, renaming, (missing, bad), source))
    for name, twins in outline.twins.items():
        known = next((sources[twin] for twin in twins if twin in sources), None)
        if known is not None:
            sources[name] = known
    # What has another shape has a place, too.
    used = {p.name for found in (sources, renaming.sources) for ps in found.values() for p in ps}
    parts = _parts_of_blocks(given, used)
    if parts:
        raise ConfigError(
            f"--init-from {source!r} is of another model than {outline.name}: its blocks have "
            f"parts that the model's do not have, {_some(parts)}; the nearest rule, "
            f"{renaming.rule}, fits all else; give the weights of this model, or a file without "
            "these"
        )
    return Match(
        rule=renaming.rule,
        sources=sources,
        fresh=[n for n in outline.needed if n in fresh and n not in sources],
        left=[name for name in given if name not in used],
        shapes={n: found[n] for n in fresh if n in found},
    )


def _owner(name: str) -> str:
    return name.rpartition(".")[0]


def _parts_of_blocks(given: Collection[str], used: Collection[str]) -> list[str]:
    """What a file has in several blocks whose other tensors the model has.

    layer1.0.se.fc1.weight    next to layer1.0.conv1.weight: results differ without it
    layer3.9.conv1.weight     more blocks than the model has, of the same kind: none of these
    cls.dense.weight          another head: none either
    """
    kinds: dict[str, list[str]] = {}
    for name in given:
        if name not in used and name.endswith(_LEARNT):
            kinds.setdefault(_kind(name), []).append(name)
    for name in used:
        kinds.pop(_kind(name), None)
    inside = {block for name in used for block in _blocks(name)}
    repeated = (names for names in kinds.values() if len(names) > 1)
    return [n for names in repeated for n in names if not inside.isdisjoint(_blocks(n))]


def _kind(name: str) -> str:
    """A name without the numbers of blocks."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def _blocks(name: str) -> list[str]:
    """The numbered modules that something is in."""
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n, part in enumerate(parts[:-1]) if part.isdecimal()]


def _has(name: str, outline: Outline, sources: Collection[str]) -> bool:
    return any(twin in sources for twin in outline.twins.get(name, (name,)))


def _chosen(outline: Outline, new_head: str) -> set[str]:
    """What begins anew whatever the file has."""
    if new_head in (AUTO, NONE):
        return set()
    if new_head == LAST:
        return outline.last()
    found: set[str] = set()
    for pattern in new_head.split(","):
        named = {n for n in outline.shapes if is_under(n, pattern)}
        if not named:
            raise ConfigError(
                f"--new-head {pattern!r} names nothing of {outline.name}; "
                f"{nearest(pattern, modules_of(outline.shapes))}"
            )
        found |= named
    return found


def is_under(name: str, pattern: str) -> bool:
    """Whether a parameter, or a module that it is in, has a name of this pattern."""
    parts = name.split(".")
    paths = (".".join(parts[:n]) for n in range(1, len(parts) + 1))
    return any(fnmatch.fnmatchcase(path, pattern) for path in paths)


def modules_of(names: Collection[str]) -> list[str]:
    """The modules that hold what has these names, the outer ones first."""
    found = dict.fromkeys(
        ".".join(name.split(".")[:n]) for name in names for n in range(1, name.count(".") + 1)
    )
    return sorted(found, key=lambda name: name.count("."))


def _is_other_head(outline: Outline, other: Mapping[str, Shape]) -> bool:
    """Whether shapes differ as those of layers do that have another number of outputs."""
    ratios = set()
    for name, given in other.items():
        own = outline.shapes[name]
        if not own or len(own) != len(given) or own[1:] != given[1:] or not given[0]:
            return False
        if outline.num_outputs and own[0] % outline.num_outputs:
            return False
        ratios.add(own[0] / given[0])
    return len(ratios) == 1


def _is_end(outline: Outline, missing: Sequence[str], sources: Collection[str]) -> bool:
    """Whether all of the model is there up to a layer, and that is most of it."""
    if not missing:
        return False
    place = {name: number for number, name in enumerate(outline.shapes)}
    loaded = [name for name in outline.needed if _has(name, outline, sources)]
    if len(loaded) < _LEAST_LOADED * len(outline.needed):
        return False
    # Twins of what is missing are missing, too: the first of each counts.
    return min(place[name] for name in missing) > max(place[name] for name in loaded)


def _mismatch(
    outline: Outline,
    given: Mapping[str, Shape],
    renaming: Renaming,
    wrong: tuple[Sequence[str], Sequence[str]],
    source: str,
) -> str:
    missing, bad = wrong
    parts = []
    if missing:
        known = list(renaming.sources)
        others = [n for n in given if n not in {p[0].name for p in renaming.sources.values()}]
        first = missing[0]
        near = nearest(first, others or known, limit=2) if others or known else ""
        parts.append(
            f"it has none for {len(missing)} of the {len(outline.needed)} tensors, such as "
            f"{first!r}" + (f" ({near})" if near else "")
        )
    if bad:
        name = bad[0]
        has = joined_shape(renaming.sources[name], given)
        parts.append(
            f"{len(bad)} have another shape, such as {name!r}: {_text(outline.shapes[name])}, in "
            f"the file {_text(has)}"
        )
    count = renaming.fitting(outline.shapes, given)
    return (
        f"--init-from {source!r} is of another model than {outline.name}: {'; '.join(parts)}; the "
        f"nearest rule, {renaming.rule}, fits {count} of them; give the weights of this model, or "
        "name what is to begin anew with --new-head"
    )


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "one number"


def lines_of(found: Match, outline: Outline, source: str) -> list[str]:
    """What was loaded and what was not, in two lines."""
    loaded = [n for n in outline.needed if n in found.sources]
    numbers = sum(_count(outline.shapes[n]) for n in loaded)
    total = sum(_count(outline.shapes[n]) for n in outline.needed)
    first = (
        f"weights from {source}: {len(loaded)} of {len(outline.needed)} tensors, "
        f"{numbers / 1e6:.3g} of {total / 1e6:.3g} million numbers; {found.rule}"
    )
    parts = [_fresh_text(found, outline)] if found.fresh else ["nothing of the model"]
    if found.left:
        parts.append(f"{_some(found.left)} of the file {_have(found.left)} no place in the model")
    return [first, f"not loaded: {'; '.join(parts)}"]


def _fresh_text(found: Match, outline: Outline) -> str:
    name = next((n for n in found.fresh if n in found.shapes), None)
    own = None if name is None else (outline.shapes[name], found.shapes[name])
    why = ", which the file does not have" if own is None else ""
    if own is not None and own[0] != own[1]:
        why = f" (as {own[0][0]} outputs, in the file {own[1][0]})"
    elif own is not None:
        why = " (--new-head)"
    return f"{_some(found.fresh)} {'begins' if len(found.fresh) == 1 else 'begin'} anew{why}"


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NUM_SHOWN} more" if len(names) > _NUM_SHOWN else ""
    return ", ".join(names[:_NUM_SHOWN]) + more


def _count(shape: Shape) -> int:
    total = 1
    for length in shape:
        total *= length
    return total
