"""What the ranks of a run have printed: whose file is which, and what comes into them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundlerun.launcher.run_folder.paths import RunPaths

_TAIL_BYTES = 256 << 10
"""Of a file, in which its last lines are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankLog:
    """One file of one rank.

    Args:
        node: the name of the rank's node.
        start: of the agent there, in the order of time, from 0.
        attempt: of that start.
        local_rank: of the rank.
        rank: of the round; -1 if it has not met the others, or is a spare one.
        path: of the file.
    """

    node: str
    start: int
    attempt: int
    local_rank: int
    rank: int
    path: Path

    @property
    def title(self) -> str:
        """Whose it is, for people."""
        rank = f", rank {self.rank}" if self.rank >= 0 else ""
        begin = f", start {self.start + 1}" if self.start else ""
        name = "" if self.path.stem == "worker" else f", {self.path.stem}"
        return (
            f"node {self.node}{begin}, attempt {self.attempt}, local rank {self.local_rank}"
            f"{rank}{name}"
        )

    @property
    def label(self) -> str:
        """The same in a word, to stand before a line."""
        return f"{self.node}/{self.rank if self.rank >= 0 else f'local {self.local_rank}'}"


def rank_logs(paths: RunPaths, events: Iterable[Mapping[str, Any]]) -> list[RankLog]:
    """All files, in the order of time.

    Args:
        paths: of the run.
        events: of all nodes.
    """
    ranks = {
        (event["node"], event["log"]): int(event["rank"])
        for event in events
        if event.get("event") == "met" and event.get("log")
    }
    found: list[tuple[float, RankLog]] = []
    for node, files in _by_node(paths).items():
        starts = sorted({path.parents[2] for path in files}, key=_begun)
        for path in files:
            folder = path.parent
            where = "/".join(folder.parts[-3:])
            log = RankLog(
                node=node,
                start=starts.index(path.parents[2]),
                attempt=int(folder.parent.name.rpartition("_")[2]),
                local_rank=int(folder.name),
                rank=ranks.get((node, where), -1),
                path=path,
            )
            found.append((_changed(folder.parent), log))
    found.sort(key=lambda pair: (pair[0], pair[1].node, pair[1].local_rank, pair[1].path.name))
    return [log for _, log in found]


def newest(logs: Sequence[RankLog]) -> list[RankLog]:
    """The files of the last attempt of each node."""
    last = {log.node: (log.start, log.attempt) for log in logs}
    for log in logs:
        last[log.node] = max(last[log.node], (log.start, log.attempt))
    return [log for log in logs if last[log.node] == (log.start, log.attempt)]


def last_lines(path: Path, count: int) -> tuple[list[str], int]:
    """The last lines of a file, all of them for a count of 0, and where they end.

    What is not ended by a line break yet is left for later.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _TAIL_BYTES) if count else 0)
        begin = file.tell()
        data = file.read()
    if begin:
        data = data[data.find(b"\n") + 1 :]
    whole = data[: data.rfind(b"\n") + 1]
    lines = whole.decode(errors="replace").splitlines()
    return lines[-count:] if count else lines, size - (len(data) - len(whole))


def lines_after(path: Path, place: int) -> tuple[list[str], int]:
    """The whole lines that came after a place, and where they end."""
    with path.open("rb") as file:
        file.seek(place)
        data = file.read()
    whole = data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), place + len(whole)


def _by_node(paths: RunPaths) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in paths.rank_logs():
        if path.parent.name.isdecimal() and path.parents[1].name.rpartition("_")[2].isdecimal():
            files.setdefault(path.parents[3].name, []).append(path)
    return files


def _begun(start: Path) -> tuple[float, str]:
    # A folder changes when something is made in it; the first attempt's is made with the start.
    return min(map(_changed, start.glob("attempt_*"))), start.name


def _changed(folder: Path) -> float:
    return folder.stat().st_mtime
