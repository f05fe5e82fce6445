"""Pure: whether a file system does what a run folder needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning
from bundlerun.launcher.doctor.machine import GIB, size

SUBJECT = "run folder"
LITTLE_ROOM = 2 * GIB
FEW_FILES = 10_000
SLOW_WRITE_S = 0.1
"""A claim and a pulse are written every second or two; a write must be far quicker."""
MEND = "give --run-dir on another file system"


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderFacts:
    """What a trial in a folder has shown.

    path: as the user names it. kind: of the file system, such as nfs4; empty: not known.
    why_not: why nothing could be written, of the system; else nothing.
    write_s: seconds to write a small file for good and rename it, the middle of several.
    links: whether a hard link is made, and a second one to the same name refused.
    locks: whether a file can be locked. free: bytes. free_files: None where it does not count them.
    """

    path: str
    kind: str = ""
    why_not: str = ""
    write_s: float = 0.0
    links: bool = True
    locks: bool = True
    free: int = 0
    free_files: int | None = None


def check_folder(facts: FolderFacts) -> Iterator[Finding]:
    """As seen from one node."""
    if facts.why_not:
        text = f"{facts.path!r} cannot be written: {facts.why_not}"
        yield error(SUBJECT, text, "give a --run-dir that you can write to")
        return
    kind = f" ({facts.kind})" if facts.kind else ""
    text = f"{facts.path}{kind}: a file takes {facts.write_s * 1e3:.1f} ms, {size(facts.free)} free"
    if facts.write_s > SLOW_WRITE_S:
        mend = f"checkpoints and claims are slow there; {MEND}, or ask who else writes"
        yield warning(SUBJECT, text, mend)
    else:
        yield ok(SUBJECT, text)
    if facts.free < LITTLE_ROOM:
        text = f"{size(facts.free)} free in {facts.path!r}"
        yield warning("room", text, f"checkpoints may not fit: clear it, or {MEND}")
    if facts.free_files is not None and facts.free_files < FEW_FILES:
        text = f"{facts.free_files} more files fit into {facts.path!r}"
        yield warning("room", text, f"clear it, or {MEND}")
    if not facts.links:
        text = f"{facts.path!r} has no hard links: a claim may be met while it is still empty"
        yield warning("hard links", text, f"for runs of several nodes {MEND}")
    if not facts.locks:
        yield ok("locks", f"{facts.path} has no file locks; none are needed there")


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedFacts:
    """What several nodes have seen of one folder.

    path: the folder. lead: the node that wrote first.
    seen_s: seconds until each other node saw what the lead wrote; None where it never did.
    back_s: until the lead saw what each other node wrote.
    firsts: nodes that made one and the same file, which only one may.
    """

    path: str
    lead: str
    seen_s: tuple[tuple[str, float | None], ...]
    back_s: tuple[tuple[str, float | None], ...]
    firsts: tuple[str, ...]
    wait_s: float


def check_shared(facts: SharedFacts) -> Iterator[Finding]:
    """Whether all nodes see one and the same folder."""
    subject, mend = "shared folder", "give a --run-dir on a file system that all nodes share"
    blind = [name for name, seen_s in facts.seen_s if seen_s is None]
    unseen = [n for n, back_s in facts.back_s if back_s is None and n not in blind]
    for name in blind:
        text = (
            f"{name} does not see in {facts.path!r} what {facts.lead} wrote {facts.wait_s:g} s ago"
        )
        yield error(subject, text, mend)
    for name in unseen:
        text = f"{facts.lead} does not see in {facts.path!r} what {name} wrote"
        yield error(subject, text, f"let all nodes write there, as one user; or {mend}")
    if blind or unseen:
        return
    if len(facts.firsts) != 1:
        text = f"{len(facts.firsts)} nodes made one file in {facts.path!r}: {_names(facts.firsts)}"
        yield error(subject, f"{text}; exactly one may", mend)
        return
    times = [s for _, s in (*facts.seen_s, *facts.back_s) if s is not None]
    num = len(facts.seen_s) + 1
    slowest = max(times, default=0.0)
    text = f"{num} nodes see {facts.path}, within {slowest * 1e3:.0f} ms; one of them was first"
    if slowest > 1.0:
        yield warning(subject, text, "its caches delay what nodes tell each other (NFS: actimeo=1)")
    else:
        yield ok(subject, text)


def _names(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"
