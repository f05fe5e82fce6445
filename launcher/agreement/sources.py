"""The files behind a program: a user's own with what it imports next to it, and our own."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import bundlerun

PACKAGES = ("launcher", "workers", "splits", "slurm")
"""Our own, which are next to each other."""


def files_behind(file: Path, *folders: Path) -> list[Path]:
    """`file` and the modules that it imports from its own folder, and so on; sorted.

    What cannot be read or parsed is left out: who imports it says what is wrong.

    Args:
        file: the program.
        folders: others that it may import from.
    """
    places, found, queue = (file.parent, *folders), set[Path](), [file]
    while queue:
        path = queue.pop()
        if path in found or not path.is_file():
            continue
        found.add(path)
        names = list(_imports(path))
        queue += (each for name in names for place in places for each in _beside(place, name))
    return sorted(found)


def _imports(path: Path) -> Iterator[str]:
    """The first word of each module that a file imports."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


def _beside(folder: Path, name: str) -> Iterator[Path]:
    """The files of a module in `folder`; of a package, all."""
    yield folder / f"{name}.py"
    if (folder / name / "__init__.py").is_file():
        yield from (folder / name).rglob("*.py")


def digest(files: Iterable[Path], *roots: Path) -> str:
    """A short digest of what files hold and of where they are below one of `roots`."""
    total = hashlib.sha256()
    for file in files:
        try:
            content = hashlib.sha256(file.read_bytes()).hexdigest()
        except OSError as exc:
            # What cannot be read counts, too: the same on all nodes where none can read it.
            content = str(exc.errno)
        root = next(root for root in roots if file.is_relative_to(root))
        total.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return total.hexdigest()[:12]


@cache
def own_digest() -> str:
    """A digest of our own code, as this process found it."""
    return code_digest(Path(bundlerun.__file__).parent)


def code_digest(root: Path) -> str:
    """A digest of the modules of our packages below `root`."""
    return digest(sorted(file for name in PACKAGES for file in (root / name).rglob("*.py")), root)
