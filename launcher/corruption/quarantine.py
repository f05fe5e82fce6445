"""Nodes that are left out for the rest of a run, as they have computed or kept something wrongly.

    RUN/corruption/left-out/node-c.json      written by ranks, where --quarantine is given

A node looks for itself before each round, and the coordinator before it takes a node in: one
whose agent is started again is refused, too. Who removes the file lets the node in again.
"""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import quote

from bundlerun.launcher.run_folder.files import write_text


def leave_out(folder: Path, node: str, why: str) -> None:
    """Leaves a node out; whoever says it first or again says the same.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_text(_file(folder, node), json.dumps({"node": node, "why": why}))


def why_left_out(folder: str, node: str) -> str:
    """Why a node is left out; empty where it is not, or nobody can say, as there is no folder."""
    if not folder:
        return ""
    try:
        return str(json.loads(_file(Path(folder), node).read_text(encoding="utf-8"))["why"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _file(folder: Path, node: str) -> Path:
    return folder / f"{quote(node, safe='')}.json"
