"""How libraries call the same tensors: pairs of names by rule, for families that several have.

    timm            blocks.3.attn.qkv.weight
    torchvision     encoder.layers.encoder_layer_3.self_attention.in_proj_weight
    transformers    layers.3.attention.q_proj.weight  .k_proj.weight  .v_proj.weight

A table has names of our own in its first column, and then a column for each library. `{i}`, `{j}`
and `{k}` stand for numbers, `{i+1}` and `{2i}` for numbers that are counted otherwise there, `{x}`
for a word such as weight. Names joined by "+" are one tensor of several along its first dimension.
A row is read from above: the first that fits counts.

    -           the library has none
    =           as in the column before
    [{i}.{j}]   the block of that number in that stage; libraries that count blocks throughout have
                one number there, and both become the place in the row of all blocks
    0:name      the library has none, and means zeros of the shape of that one

Source: the modules of torchvision 0.29, timm 1.0 and transformers 5.23, and for the second column
of the latter the files that it writes, whose names are those of transformers 4. The second of
torchvision is that of files from before 2019, which it renames when it loads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from bundlerun.splits.weights.tables import convolutions, mobile, transformers

_NUMBER = re.compile(r"\{(\d*)([ijk])(\+\d+)?\}")

_DIGITS = re.compile(r"\d+")
_ZEROS = "0:"
_BLOCK = re.compile(r"\[([^\]]*)\]")
_TABLES = {**transformers.TABLES, **convolutions.TABLES, **mobile.TABLES}
_COLUMNS = (
    "torchvision",
    "timm",
    "transformers",
    "files of transformers",
    "files of torchvision",
)


@dataclass(frozen=True)
class Dialect:
    """How one library calls the tensors of a family of models.

    Args:
        family: of models.
        library: whose names they are.
        rows: our names, and the library's.
    """

    family: str
    library: str
    rows: Sequence[tuple[str, str]] = field(repr=False)

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str, str]]:
        named = (row for row in self.rows if not row[1].startswith(_ZEROS))
        return [(_pattern(theirs), theirs, ours) for ours, theirs in named]

    @cached_property
    def _zeros(self) -> Dialect:
        rows = [(a, b[len(_ZEROS) :]) for a, b in self.rows if b.startswith(_ZEROS)]
        return Dialect(self.family, self.library, rows)

    def read(self, name: str) -> tuple[str, ...]:
        """What we call a tensor, or the parts of it; nothing where it is not in the table."""
        for pattern, theirs, ours in self._rows_like(_DIGITS.sub("0", name)):
            match = pattern.fullmatch(name)
            values = _values(theirs, match) if match else None
            if values is not None:
                return tuple(_filled(ours, values).split("+"))
        return ()

    def _rows_like(self, outline: str) -> list[tuple[re.Pattern[str], str, str]]:
        # Few outlines stand for the many names of a model, whose blocks differ in numbers only.
        if outline not in self._known:
            self._known[outline] = [
                row
                for row, likeness in zip(self._patterns, self._outlines, strict=True)
                if likeness.fullmatch(outline)
            ]
        return self._known[outline]

    @cached_property
    def _known(self) -> dict[str, list[tuple[re.Pattern[str], str, str]]]:
        return {}

    @cached_property
    def _outlines(self) -> list[re.Pattern[str]]:
        """Of each pattern: what it matches with each number as 0."""
        texts = (_DIGITS.sub("0", _NUMBER.sub("0", row[1])) for row in self._patterns)
        return [_pattern(text) for text in texts]

    def zeros_like(self, name: str) -> tuple[str, ...]:
        """What we call tensors of zeros of the same shape, which the library leaves out."""
        return self._zeros.read(name)


def in_a_row(names: Iterable[str]) -> Mapping[str, str]:
    """Our names of a whole model with its blocks numbered throughout, by those of `read`."""
    found = {name: _BLOCK.search(name) for name in names}
    blocks = {match[1]: _numbers(match[1]) for match in found.values() if match}
    place = {block: n for n, block in enumerate(sorted(blocks, key=lambda b: blocks[b]))}
    return {
        name: _BLOCK.sub(str(place[match[1]]), name) if match else name
        for name, match in found.items()
    }


def _numbers(block: str) -> tuple[int, ...]:
    # A library that counts throughout has fewer fields, and leaves the others as they are.
    return tuple(int(part) for part in block.split(".") if part.isdecimal())


def _pattern(template: str) -> re.Pattern[str]:
    # Only dots in a template mean something else to a pattern, once its fields are taken out.
    text, known = template.replace(".", r"\."), set[str]()

    def number(match: re.Match[str]) -> str:
        letter = match[2]
        if letter in known:  # the same number again
            return f"(?P={letter})"
        known.add(letter)
        return rf"(?P<{letter}>\d+)"

    return re.compile(_NUMBER.sub(number, text).replace("{x}", r"(?P<x>\w+)"))


def _values(template: str, match: re.Match[str]) -> dict[str, str] | None:
    """What the fields stand for, as we count; None where a number is none of that count."""
    values = dict(match.groupdict())
    for factor, letter, offset in _NUMBER.findall(template):
        number, rest = divmod(int(match[letter]) - int(offset or 0), int(factor or 1))
        if rest or number < 0:
            return None
        values[letter] = str(number)
    return values


def _filled(template: str, values: dict[str, str]) -> str:
    for letter, value in values.items():
        template = template.replace(f"{{{letter}}}", value)
    return template


def _dialects(family: str, table: str) -> list[Dialect]:
    rows = [line.split() for line in table.splitlines() if line.strip()]
    found = []
    for column in range(1, len(rows[0])):
        named = []
        for row in rows:
            at = column
            while row[at] == "=":  # as the column before it
                at -= 1
            if row[at] != "-":
                named.append((row[0], row[at]))
        found.append(Dialect(family, _COLUMNS[column - 1], tuple(named)))
    # Columns that are equal throughout need no second try.
    return [d for n, d in enumerate(found) if d.rows not in [e.rows for e in found[:n]]]


DIALECTS: tuple[Dialect, ...] = tuple(
    dialect for family, table in _TABLES.items() for dialect in _dialects(family, table)
)
