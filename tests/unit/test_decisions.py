"""No code decides by looking into a sentence: causes and events have types, texts are for readers.

What a library of others gives as a text without a type is looked into where it comes in.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("launcher", "slurm", "splits", "workers")

SENTENCES = {
    *("why", "reason", "reasons", "message", "text", "story", "error", "exc", "waits_for", "over"),
    *("refusal", "refusals", "last_line", "note", "obstacle", "why_over", "failure", "unlike"),
}
"""Names of what is told to a reader."""

LOOKS = {"startswith", "endswith", "find", "index", "count", "partition", "rpartition"}
MATCHES = {"match", "search", "fullmatch", "findall"}

AT_THE_EDGE = {
    ("launcher/ranks/fault.py", "_is_lost_peer"),  # torch has no type for a lost peer
    ("slurm/jobs.py", "job"),  # scontrol has no exit code for a job that it has forgotten
    ("slurm/jobs.py", "_known"),  # what scontrol writes for nothing
    ("workers/data/loader.py", "_is_death"),  # torch raises RuntimeError for whatever it is
    ("workers/data/loader.py", "_death_message"),
}
"""File and function: where a text of others comes in."""


def looks_into_sentences(source: str) -> list[tuple[str, int]]:
    """Function and line of each place that compares a sentence with words."""
    return [
        (function, node.lineno)
        for function, node in _with_functions(ast.parse(source), "")
        if isinstance(node, ast.Compare | ast.Call | ast.Match) and _looks(node)
    ]


def _with_functions(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        inner = child.name if is_function else function
        yield inner, child
        yield from _with_functions(child, inner)


def _looks(node: ast.Compare | ast.Call | ast.Match) -> bool:
    match node:
        case ast.Compare(left=left, ops=[ast.In() | ast.NotIn(), *_], comparators=[right, *_]):
            is_inside = _is_sentence(right) and not _is_mark(left)
            return is_inside or (_is_sentence(left) and _has_words(right))
        case ast.Compare(left=left, comparators=[right, *_]):
            pairs = ((left, right), (right, left))
            return any(_is_sentence(one) and _has_words(other) for one, other in pairs)
        case ast.Call(func=ast.Attribute(value=value, attr=attr), args=args):
            is_look = attr in LOOKS and _is_sentence(value) and any(map(_has_words, args))
            return is_look or (attr in MATCHES and any(_is_sentence(arg, "text") for arg in args))
        case ast.Match(subject=subject, cases=cases):
            values = [v for case in cases for v in ast.walk(case.pattern)]
            return _is_sentence(subject) and any(
                isinstance(v, ast.MatchValue) and _has_words(v.value) for v in values
            )
    return False


def _has_words(node: ast.AST) -> bool:
    """A text with a letter in it, or several."""
    if isinstance(node, ast.Tuple | ast.Set | ast.List):
        return any(map(_has_words, node.elts))
    is_text = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_text and any(map(str.isalpha, node.value))


def _is_mark(node: ast.AST) -> bool:
    """A text without a letter, which a parser looks for."""
    return isinstance(node, ast.Constant) and not _has_words(node)


def _is_sentence(node: ast.AST, but: str = "") -> bool:
    """A name of a sentence, or a field, a key or a call that gives one."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in SENTENCES and name != but
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key in SENTENCES
        case ast.Call(func=ast.Attribute(attr="get"), args=[ast.Constant(value=str(key)), *_]):
            return key in SENTENCES
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[inner, *_]):
            return _is_sentence(inner)
        case ast.Call(func=ast.Attribute(value=inner, attr="strip" | "lower")):
            return _is_sentence(inner)
    return False


def test_no_decision_is_made_by_a_sentence() -> None:
    files = [file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("*.py"))]
    found = {
        (str(file.relative_to(ROOT)), function): line
        for file in files
        for function, line in looks_into_sentences(file.read_text())
    }
    assert {place: line for place, line in found.items() if place not in AT_THE_EDGE} == {}
    assert AT_THE_EDGE - found.keys() == set(), "what no longer looks into a text is listed"


@pytest.mark.parametrize(
    "line",
    [
        "attempt.over.startswith('node ')",
        "self.member.over.reason == 'all done'",
        "any('token' in why for why in found)",
        "any(word in text for word in _FOLLOWERS)",
        "'Connection' in str(exc).lower()",
        "event['why'] in ('a node', 'a rank')",
        "'gone' in event.get('text')",
        "re.search('lost', reason)",
    ],
)
def test_a_look_into_a_sentence_is_seen(line: str) -> None:
    assert looks_into_sentences(f"def f():\n    return {line}") == [("f", 2)]


@pytest.mark.parametrize(
    "line",
    ["why == ''", "',' in text", "cause is EndCause.LOST", "name_of(row) == 'over'", "why != last"],
)
def test_other_comparisons_are_left_alone(line: str) -> None:
    assert looks_into_sentences(line) == []
