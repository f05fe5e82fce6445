"""The texts of errors, read out of the source: where each is made, and what is filled in.

A text is `--lr <lr> must be above 0, and finite`: what is filled in is named by the expression that
gives it. Where a text comes out of a variable or a function, it is looked up in the same file.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOMS = ("launcher", "slurm", "splits", "workers")
BASE = "BundleError"
_MOST = 8
"""Texts of one place at most: alternatives multiply."""
_TOLD = "error: "
"""What a text begins with that is printed without an exception."""


@dataclass(frozen=True, slots=True, order=True)
class Message:
    """A text that users are told.

    file, function, line: where it is made.
    error: the class of the exception; empty where it is printed.
    """

    file: str
    line: int
    function: str
    error: str
    text: str


def error_classes(trees: dict[str, ast.Module]) -> dict[str, str]:
    """Class -> the class it is made from, for all that are BundleError or made from it."""
    parents = {
        node.name: base.id
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for base in node.bases[:1]
        if isinstance(base, ast.Name)
    }
    found = {BASE: ""}
    while new := {n: p for n, p in parents.items() if p in found and n not in found}:
        found |= new
    return found


@cache
def sources(root: Path = ROOT) -> dict[str, ast.Module]:
    """File -> its tree, for all files of the package."""
    files = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    return {str(path.relative_to(root)): ast.parse(path.read_text("utf-8")) for path in files}


@cache
def all_messages() -> tuple[Message, ...]:
    """All texts of the package."""
    return tuple(messages(sources()))


def messages(trees: dict[str, ast.Module]) -> list[Message]:
    """All texts of files, in their order."""
    known = error_classes(trees)
    found = [
        Message(name, node.lineno, function, error, text)
        for name, tree in trees.items()
        for reader in [_File(tree, trees)]
        for function, node, error, argument in _made(tree, known)
        for text in reader.texts(argument, reader.functions.get(function), set())
    ]
    return sorted(set(found))


def _made(tree: ast.Module, known: dict[str, str]) -> Iterator[tuple[str, ast.AST, str, ast.expr]]:
    """Function, place, class and text of each error that a file makes."""
    for function, node in _inside(tree, ""):
        match node:
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name), args=[first, *_]):
                if name in known:
                    yield function, node, name, first
            case ast.JoinedStr(values=[ast.Constant(value=str(start)), *_]):
                if start.startswith(_TOLD):
                    yield function, node, "", node
            case ast.Constant(value=str(start)) if start.startswith(_TOLD) and len(start) > 8:
                yield function, node, "", node


def _inside(node: ast.AST, function: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inner = (
            child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        )
        yield inner, child
        # The beginning of a text is read with it.
        if not isinstance(child, ast.JoinedStr):
            yield from _inside(child, inner)


class _File:
    """Reads expressions that give texts, with what else is in their file."""

    def __init__(self, tree: ast.Module, trees: dict[str, ast.Module]) -> None:
        self._tree = tree
        self._trees = trees

    @cached_property
    def functions(self) -> dict[str, ast.FunctionDef]:
        """By name, methods too."""
        return {n.name: n for n in ast.walk(self._tree) if isinstance(n, ast.FunctionDef)}

    @cached_property
    def _imported(self) -> dict[str, str]:
        """Name -> the file that it is imported from."""
        return {
            alias.name: node.module.removeprefix("bundlerun.").replace(".", "/") + ".py"
            for node in ast.walk(self._tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }

    def texts(self, node: ast.expr, scope: ast.FunctionDef | None, seen: set[int]) -> list[str]:
        """All texts that `node` may be, with what is filled in as <name>."""
        if id(node) in seen:
            return []
        seen = seen | {id(node)}
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                return self._joined(values, scope, seen)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return self._joined([left, right], scope, seen)
            case ast.IfExp(body=one, orelse=other):
                return self.texts(one, scope, seen) + self.texts(other, scope, seen)
            case ast.BoolOp(values=values):
                return [text for value in values for text in self.texts(value, scope, seen)]
            case ast.FormattedValue(value=value, conversion=conversion):
                return self._filled(value, conversion, scope, seen)
            case ast.Call(func=ast.Name(id="str"), args=[inner]):
                return self.texts(inner, scope, seen)
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
                return self._returned(name, seen) or [_blank(node)]
            case ast.Name(id=name):
                return self._assigned(name, scope, seen) or [_blank(node)]
        return [_blank(node)]

    def _joined(
        self, parts: list[ast.expr], scope: ast.FunctionDef | None, seen: set[int]
    ) -> list[str]:
        every = [list(dict.fromkeys(self.texts(part, scope, seen))) or ["<...>"] for part in parts]
        return ["".join(words) for words, _ in zip(product(*every), range(_MOST), strict=False)]

    def _filled(
        self, value: ast.expr, conversion: int, scope: ast.FunctionDef | None, seen: set[int]
    ) -> list[str]:
        """What stands for a value in a text: a choice of words, or the name of the value."""
        match value:
            case ast.IfExp():
                texts = self.texts(value, scope, seen)
            case ast.Call(func=ast.Name(id="flag_of")):
                texts = ["--<option>"]
            case _:
                texts = [_blank(value)]
        return [f"'{text}'" for text in texts] if conversion == ord("r") else texts

    def _assigned(self, name: str, scope: ast.FunctionDef | None, seen: set[int]) -> list[str]:
        """What a variable of the function, or of the file, is set to."""
        for where in filter(None, (scope, self._tree, self._module_of(name))):
            values = [
                node.value
                for node in ast.walk(where)
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Name) and target.id == name
            ]
            texts = [text for value in values for text in self.texts(value, scope, seen)]
            if texts:
                return texts
        return []

    def _returned(self, name: str, seen: set[int]) -> list[str]:
        """What a function of this file, or of the one it is imported from, returns."""
        function = self.functions.get(name)
        reader = self
        if function is None:
            module = self._module_of(name)
            if module is None:
                return []
            reader = _File(module, self._trees)
            function = reader.functions.get(name)
        if function is None:
            return []
        values = [n.value for n in ast.walk(function) if isinstance(n, ast.Return) and n.value]
        return [text for value in values for text in reader.texts(value, function, seen)]

    def _module_of(self, name: str) -> ast.Module | None:
        return self._trees.get(self._imported.get(name, ""))


def _blank(node: ast.expr) -> str:
    """A name in angles for what is filled in."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"<{name.strip('_').replace('_', ' ')}>"
        case ast.Call(func=ast.Name(id="str" | "repr" | "len" | "sorted" | "list"), args=[inner]):
            return _blank(inner)
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[inner]):
            return _blank(inner)
        case ast.Call(func=ast.Name(id="nearest")):
            return "nearest: <names>"
        case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)):
            return f"<{name.strip('_').replace('_', ' ')}>"
        case ast.Subscript(value=inner) | ast.Starred(value=inner):
            return _blank(inner)
        case ast.BinOp(left=left):
            return _blank(left)
        case ast.GeneratorExp(elt=inner) | ast.ListComp(elt=inner):
            return _blank(inner)
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr():
            return "<...>"
    return "<...>"
