"""The text of a file of options with a comment for each."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Sequence

from bundlerun.launcher.proposal.proposal import Part, Value

_WIDTH = 88


def toml_text(parts: Sequence[Part], *, name: str) -> str:
    """The whole file; `name` is how a user will call it."""
    return "\n".join(_rows(parts, name)) + "\n"


def _rows(parts: Sequence[Part], name: str) -> Iterator[str]:
    yield "# Options of a run, made by `bundlerun init` for this machine and this data. Edit it."
    yield f"#     bundlerun plan --config {name}      what it means; starts nothing"
    yield f"#     bundlerun run --config {name}"
    yield "# Options of the command line and of the environment go over those here."
    yield "# `bundlerun run --help-all` has all others; lines that begin with #. are examples."
    for part in parts:
        yield ""
        yield f"## {part.title}"
        for line in part.lines:
            yield ""
            yield from textwrap.wrap(line.why, _WIDTH, initial_indent="# ", subsequent_indent="# ")
            yield f"{'' if line.is_on else '#. '}{line.key} = {_literal(line.value)}"


def _literal(value: Value) -> str:
    # A JSON string is a TOML string, but for one character that JSON leaves as it is.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
