"""Where communicators are made."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[4]


def test_groups_are_made_in_one_place() -> None:
    """All ranks make theirs in one order, which nobody could see of calls here and there."""
    making = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "workers").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "Group"
    ]
    assert set(making) == {"workers/rank/groups.py"}
