"""The page of all errors: docs/benchmarks/errors.md, of the catalogue and what was measured."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.errors.case import Case, Chapter, LeftOut
from benchmarks.errors.running import SETTINGS

_PAGE = """# Errors, and what they say

What is wrong with an option, with data, a model, a launcher or a run folder is told in a line that
begins with `error:` and says what would be right. The command ends before the first step, with
exit code 2; with 3 where the machine is at fault, with 1 where training has failed. What a user's
own code raises is shown with its traceback. Here is each case that is tried, and what it says.

`python -m benchmarks errors` has made this page; it runs all of them in a folder of odd files
(`benchmarks/errors/files.py`), with `{settings}`. Seconds are from the command to its end, in
brackets those of processor time. {measured}
{tables}

## Not tried here

{left_out}
"""
_TABLE = """
## {title}

| what is wrong | what is said | code | seconds |
|---|---|---|---|
{rows}"""


def page(
    chapters: Sequence[Chapter],
    left_out: Sequence[LeftOut],
    results: Mapping[str, Mapping[str, Any]],
    measured: str,
) -> str:
    """The page, in Markdown.

    Args:
        chapters: of cases.
        left_out: what was not tried.
        results: of cases, by name: text, code, seconds, processor_s, fault.
        measured: when and where.
    """
    tables = [
        _TABLE.format(
            title=chapter.title,
            rows="\n".join(_row(case, results.get(case.name)) for case in chapter.cases),
        )
        for chapter in chapters
    ]
    return _PAGE.format(
        settings=" ".join(f"{name}={value}" for name, value in SETTINGS.items()),
        measured=measured,
        tables="\n".join(tables),
        left_out="\n".join(f"- **{each.name}**: {each.why}" for each in left_out),
    )


def _row(case: Case, result: Mapping[str, Any] | None) -> str:
    settings = [
        f"{name}={shlex.quote(value)}" if value else f"env -u {name}"
        for name, value in case.environ.items()
    ]
    typed = [*case.before, *([f"{case.beside} &"] if case.beside else [])]
    typed.append(" ".join([*settings, case.line]))
    what = "<br>".join([f"**{case.name}**", *map(_code, typed)])
    if result is None:
        return f"| {what} | not run yet | | |"
    said = _code(result["text"])
    if result["fault"]:
        said += f"<br>**not as wanted**: {_escaped(result['fault'])}"
    code = "none, it was ended" if result["code"] is None else result["code"]
    return f"| {what} | {said} | {code} | {result['seconds']:.1f} ({result['processor_s']:.1f}) |"


def _code(text: str) -> str:
    # A text of its own with backticks wants longer ones around it.
    begin, end = ("`` ", " ``") if "`" in text else ("`", "`")
    return f"{begin}{_escaped(text)}{end}"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
