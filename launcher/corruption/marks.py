"""The marks of a run folder: each says that states after a step are not to be gone on from.

    RUN/corruption/era-0-stage-1.json      found by all replicas of stage 1, which write the same
    RUN/corruption/era-1-stage-0.json      found after the run had gone back once

An era is what a run does from one going back to the next. Pieces of snapshots carry theirs, so that
a node that comes back late with a state of an earlier era is not believed.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

from bundlerun.launcher.run_folder.checkpoints import checkpoint_folders
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.paths import RunPaths

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CorruptionMark:
    """That replicas of a stage differed.

    Args:
        era: in which it was found.
        stage: of the replicas.
        step: before which it was found.
        verified: finished steps of the newest state that is trusted.
        kind: of what differs.
        name: of it.
        culprits: nodes whose replica is wrong; none where no majority says so.
        text: the same for a reader.
    """

    era: int
    stage: int
    step: int
    verified: int
    kind: str
    name: str
    culprits: tuple[str, ...] = ()
    text: str = ""


def write_mark(paths: RunPaths, mark: CorruptionMark) -> None:
    """Writes a mark; each replica writes the same, so that one that dies on the way is no loss."""
    paths.corruption.mkdir(parents=True, exist_ok=True)
    write_text(paths.corruption_mark(mark.era, mark.stage), json.dumps(asdict(mark)))


def read_marks(paths: RunPaths) -> tuple[CorruptionMark, ...]:
    """The marks of a run, the first era first."""
    found = []
    for path in sorted(paths.corruption.glob("era-*-stage-*.json")):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            found.append(CorruptionMark(**{**values, "culprits": tuple(values["culprits"])}))
        except (OSError, ValueError, TypeError, KeyError) as exc:
            log.warning("cannot read %s: %s", path, exc)
    return tuple(sorted(found, key=lambda mark: (mark.era, mark.stage)))


def era_of(marks: Iterable[CorruptionMark]) -> int:
    """The era that begins after these marks."""
    return 1 + max((mark.era for mark in marks), default=-1)


def trusted_step(marks: Iterable[CorruptionMark]) -> int:
    """Finished steps of the newest state that is trusted of all before; -1 without marks."""
    found = list(marks)
    newest = era_of(found) - 1
    return min((mark.verified for mark in found if mark.era == newest), default=-1)


def is_trusted(step: int, era: int, marks: Iterable[CorruptionMark]) -> bool:
    """Pure: whether the state after `step` steps, of an era, may be gone on from."""
    return all(step <= mark.verified for mark in marks if mark.era >= era)


def set_aside(paths: RunPaths, marks: Sequence[CorruptionMark]) -> list[int]:
    """Takes the checkpoints that are not trusted out of the list; the steps of these.

    By one rank, before a checkpoint of the new era is written. They stay under another name.
    """
    if not marks:
        return []
    # Checkpoints have no era: what this has done once, it does not do to those of the new one.
    done = paths.corruption / f"era-{era_of(marks) - 1}-settled"
    if done.exists():
        return []
    bound = trusted_step(marks)
    moved = []
    for folder in checkpoint_folders(paths):
        step = int(folder.name.rpartition("-")[2])
        if step > bound:
            target = folder.with_name(f"suspect-{folder.name}")
            with suppress(FileNotFoundError):
                shutil.rmtree(target)
            folder.rename(target)
            moved.append(step)
    done.touch()
    return sorted(moved)
