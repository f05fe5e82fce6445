"""Pure: how fast the samples of DATA come, from its folder and out of their JPEG."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bundlerun.launcher.doctor.findings import Finding, error, ok, warning
from bundlerun.launcher.doctor.machine import size

SUBJECT = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """A look at DATA from one node.

    path: as the user names it. is_there: whether there is anything.
    kind: of its file system. why_not: why a file could not be read; else nothing.
    num_files, num_bytes: that were read, in seconds. is_images: whether they are images.
    decoded: images that one core made of them, in decode_s seconds of that core.
    why_not_decoded: why none was; else nothing.
    cores: that may be busy at once on this node.
    """

    path: str
    is_there: bool = True
    kind: str = ""
    why_not: str = ""
    num_files: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    is_images: bool = False
    decoded: int = 0
    decode_s: float = 0.0
    why_not_decoded: str = ""
    cores: int = 1


def check_data(facts: DataFacts) -> Iterator[Finding]:
    """All of it."""
    if not facts.is_there:
        text = f"no data at {facts.path!r}: no such file or folder"
        yield error(SUBJECT, text, "give DATA that this node has, the same on all nodes")
        return
    if facts.why_not:
        mend = "give the user of the run permission to read all of it"
        yield error(SUBJECT, f"{facts.path!r} cannot be read: {facts.why_not}", mend)
        return
    if not facts.num_files:
        text = f"{facts.path!r} has no file that could be read"
        yield warning(SUBJECT, text, "see docs/recipes.md for what DATA may be")
        return
    files_per_s = facts.num_files / max(facts.seconds, 1e-9)
    rate = size(facts.num_bytes / max(facts.seconds, 1e-9))
    kind = f" ({facts.kind})" if facts.kind else ""
    text = f"{facts.path}{kind}: {files_per_s:,.0f} files/s, {rate}/s, one after the other"
    yield ok(SUBJECT, f"{text}, {facts.num_files} of them")
    if not facts.is_images:
        return
    if facts.why_not_decoded:
        mend = "see that image; --skip-unreadable leaves such ones out"
        yield warning("images", facts.why_not_decoded, mend)
        return
    per_core = facts.decoded / max(facts.decode_s, 1e-9)
    text = f"one core decodes {per_core:,.0f} images/s, the node's {facts.cores} "
    text += f"{per_core * facts.cores:,.0f}"
    # Loading processes read side by side, so that one reader alone need not keep up with all cores.
    if files_per_s < per_core:
        mend = "copy DATA to a disk of the node, or pack it into shards (docs/recipes.md)"
        yield warning("images", f"{text}; reading the files takes longer than that", mend)
    else:
        yield ok("images", text)
