"""Saves and resumes a run's state, all ranks together."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.corruption.marks import (
    CorruptionMark,
    era_of,
    read_marks,
    set_aside,
    trusted_step,
)
from bundlerun.launcher.errors import CheckpointError, NodeError
from bundlerun.launcher.run_folder.checkpoints import (
    MANIFEST,
    Checkpoint,
    Part,
    Progress,
    Survey,
    find_damage,
)
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.snapshot.mark import Mark
from bundlerun.workers.snapshot.own_plan import Own
from bundlerun.workers.snapshot.piece import SnapshotId
from bundlerun.workers.snapshot.restore import Restore, Restored
from bundlerun.workers.state.checkpoint import Checkpoints

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """What one rank writes into a checkpoint, in a file of that name."""

    name: str
    tensors: Mapping[str, Tensor]


class Kept(Protocol):
    """Whose state it is that is saved: a trainer's, or that of a user's own loop."""

    def names(self, available: Iterable[str]) -> list[str]:
        """Those of the names of a whole state that this rank loads.

        Raises:
            CheckpointError: some that it needs are not among them.
        """
        ...

    def load(self, progress: Progress, tensors: Mapping[str, Tensor]) -> None:
        """Takes up the state with the names that `names` has picked.

        Raises:
            CheckpointError: it is of another model.
            ConfigError: it is of another optimizer.
        """
        ...

    @property
    def own(self) -> Own:
        """What this rank keeps for itself."""
        ...

    def load_own(
        self,
        find: Callable[[str], Mapping[str, Tensor]],
        others: Iterable[Mapping[str, Tensor]],
    ) -> None:
        """Takes up what this rank has kept for itself.

        Args:
            find: gives what a rank has kept in a situation.
            others: what this node takes up of situations that nobody is in any more.
        """
        ...

    def collect(self) -> None:
        """Prepares `share`; collective: every active rank."""
        ...

    def share(self) -> Share | None:
        """What this rank writes; None: nothing."""
        ...

    def check_finite(self) -> None:
        """Raises CheckpointError where the state is not worth keeping."""
        ...

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over all active ranks; collective."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """Where a run resumes, and from what.

    Args:
        progress: how far it had come.
        snapshot: the snapshot it is; None: a checkpoint.
        brought: what of it came from other nodes, in words.
    """

    progress: Progress
    snapshot: SnapshotId | None = None
    brought: str = ""

    @property
    def source(self) -> str:
        """What it is, in one word."""
        return "checkpoint" if self.snapshot is None else "snapshot"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run can resume from, as known before this rank has made anything.

    Args:
        on_disk: checkpoints that look whole.
        in_memory: step of the newest whole snapshot; -1 without one.
        era: see `launcher.corruption.marks`.
        trusted: finished steps of the newest state of earlier eras that is; -1 in the first one.
    """

    on_disk: Survey
    in_memory: int
    era: int = 0
    trusted: int = -1

    @property
    def is_nothing(self) -> bool:
        """Whether the run begins."""
        return not self.on_disk.found and self.in_memory < 0

    @property
    def is_snapshot(self) -> bool:
        """Whether it is a snapshot that is going to be loaded, for sure."""
        return self.in_memory > (self.on_disk.found[0].step if self.on_disk.found else -1)


def look(config: TrainConfig, session: Session, restore: Restore | None = None) -> Found:
    """Sees what there is, all ranks alike, and clears what a crash has left of checkpoints.

    Collective: every active rank.

    Args:
        config: of the run.
        session: this rank's place.
        restore: finds snapshots; None: there are none.

    Raises:
        NodeError: this node does not see the checkpoints that another does.
    """
    on_disk, era, trusted = _agreed_survey(config, session, _checkpoints(config, session))
    in_memory = -1 if restore is None else restore.newest_step()
    return Found(on_disk=on_disk, in_memory=in_memory, era=era, trusted=trusted)


def _checkpoints(
    config: TrainConfig, session: Session, about: Mapping[str, Any] | None = None
) -> Checkpoints:
    paths = RunPaths(Path(config.run_dir))
    return Checkpoints(paths, config.keep, token=session.token, config=config, about=about)


def _agreed_survey(
    config: TrainConfig, session: Session, checkpoints: Checkpoints
) -> tuple[Survey, int, int]:
    """The checkpoints that the reporter sees, as this rank reads them; for `Found`, the rest."""
    if session.is_reporter:
        # One rank only: leftovers are deleted here, and all must see one list.
        checkpoints.sweep()
        marks = _settled_marks(RunPaths(Path(config.run_dir)))
        seen = checkpoints.survey()
        told = [[c.step for c in seen.found], seen.broken, era_of(marks), trusted_step(marks)]
        session.store.set("checkpoints", json.dumps(told))
    # A shared disk may show a file later on another node. Lists that differ would send ranks to
    # different states.
    steps, broken, era, trusted = json.loads(session.store.get("checkpoints"))
    own = {c.step: c for c in checkpoints.candidates()}
    missing = [step for step in steps if step not in own]
    if missing:
        raise NodeError(
            f"this node does not see checkpoint {missing[0]} in --run-dir {config.run_dir!r}; "
            "use a folder that all nodes share"
        )
    return Survey([own[step] for step in steps], broken), era, trusted


def _settled_marks(paths: RunPaths) -> tuple[CorruptionMark, ...]:
    """What was found to be corrupted; checkpoints that are not trusted for it are out of the way.

    Raises:
        CheckpointError: one cannot be put aside.
    """
    marks = read_marks(paths)
    try:
        moved = set_aside(paths, marks)
    except OSError as exc:
        raise CheckpointError(
            f"cannot put a checkpoint aside that may be corrupted: {exc.filename!r}: {exc.strerror}"
        ) from exc
    if moved:
        log.warning(
            "checkpoints after step %d may be corrupted and are not gone on from: %s; they stay in "
            "%s as suspect-step-...", trusted_step(marks), ", ".join(map(str, moved)),
            paths.checkpoints,
        )  # fmt: skip
    return marks


class Keeper:
    """The state of a run from one start to the next, as one rank deals with it.

    The ranks of bundle 0 write checkpoints, one file per stage; all ranks read.

    Args:
        config: of the run.
        session: this rank's place.
        kept: has the state.
        restore: finds snapshots; None: there are none.
        about: what is to be known of the data, for checkpoints.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        kept: Kept,
        restore: Restore | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._session = session
        self._kept = kept
        self._restore = restore
        self._paths = RunPaths(Path(config.run_dir))
        self._checkpoints = _checkpoints(config, session, about)
        self.why_unsaved = "it was not written"
        """Why the last checkpoint could not be written; known in bundle 0."""
        self._refused_step = -1

    def resume(self, found: Found) -> Resumed | None:
        """Loads the newest state there is, a snapshot or a checkpoint; None where there is none.

        A checkpoint counts if every rank can read it whole; of two of one step it is the one.
        Collective: every active rank.

        Raises:
            CheckpointError: the state is of another model.
            ConfigError: it is of another optimizer.
        """
        chosen = None
        # Collective: `found` is the same on all ranks, so all call it or none does. It reads whole
        # files, which a newer snapshot makes needless.
        if not found.is_snapshot:
            chosen = self._checkpoints.newest(self._damage_anywhere, found.on_disk)
        on_disk = -1 if chosen is None else chosen.step
        if self._restore is not None and found.in_memory > on_disk:
            resumed = self._from_memory(self._restore, on_disk)
            # Even the newest state is of no use with a parameter that is no finite number.
            if self._is_finite_anywhere():
                return resumed
            if chosen is None:
                chosen = self._checkpoints.newest(self._damage_anywhere, found.on_disk)
            self._tell_refused(resumed.progress.step, chosen)
        elif self._restore is not None:
            # Spare ranks that lend wait for a plan; this tells them that none comes.
            self._restore.decline()
        if chosen is None:
            return None
        names = self._kept.names(chosen.weight_map)
        self._kept.load(chosen.progress, self._checkpoints.load(chosen, names))
        return Resumed(progress=chosen.progress)

    def _from_memory(self, restore: Restore, on_disk: int) -> Resumed:
        tells = self._kept.names if self._session.is_writer else None
        return self.take_up(restore, restore.fetch(on_disk, tells, self._kept.own))

    def take_up(self, restore: Restore, restored: Restored) -> Resumed:
        """Loads a state that is in the memory of this node.

        Raises:
            RuntimeError: it was damaged there.
        """
        self._kept.load(restored.progress, restore.load(restored, self._kept.names))
        self._kept.load_own(partial(restore.load, restored, list), restore.load_others(restored))
        parts = [
            f"stage {stage} from {' and '.join(nodes)}" for stage, nodes in restored.brought.items()
        ]
        return Resumed(progress=restored.progress, snapshot=restored.id, brought=", ".join(parts))

    def _is_finite_anywhere(self) -> bool:
        """Whether the loaded state is worth resuming from; the same on all ranks.

        A snapshot is taken before anybody sees the effect of a gradient that is no finite number.
        """
        try:
            self._kept.check_finite()
        except CheckpointError:
            # The sum is collective: a rank that has found something takes part, too.
            return not any(self._kept.total([1.0]))
        return not any(self._kept.total([0.0]))

    def _tell_refused(self, step: int, instead: Checkpoint | None) -> None:
        what = f"the snapshot of step {step} has a parameter that is no finite number"
        if instead is None:
            raise CheckpointError(
                f"{what}, and there is no checkpoint; start again in another --run-dir, with a "
                "lower --lr or with --clip-norm"
            )
        if self._session.is_reporter:
            log.warning("%s: resumes from the checkpoint of step %d instead", what, instead.step)

    def is_saved(self, step: int) -> bool:
        """Whether there is a checkpoint of `step`, as far as this rank sees."""
        return (self._paths.checkpoint(step) / MANIFEST).is_file()

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint; if that fails, says so and continues without it.

        Collective: every active rank.
        """
        self._kept.collect()
        if self._session.place.bundle != 0:
            return
        found = self._session.gather_bundle(self._write_part(progress.step))
        if any(part is not None and "refused" in part for part in found):
            self._refused_step = progress.step
        failure = ""
        if self._session.is_reporter:
            # The manifest makes the checkpoint exist (I11), so it comes after all parts.
            failure = self._commit(progress, [f for f in found if f is not None])
        # Bundle 0 learns whether it exists: each of its nodes marks its memory accordingly.
        failures = [text for text in self._session.gather_bundle(failure) if text]
        if failures:
            self.why_unsaved = failures[0]
            if not self.has_refused(progress.step):
                self.mark_unsaved(progress.step)
        elif self._restore is not None:
            # The disk has it: the memory may be swept again.
            self._restore.room.unmark()

    def has_refused(self, step: int) -> bool:
        """Whether the state of `step` is not worth keeping; all ranks of bundle 0 agree."""
        return self._refused_step == step

    def keep_run_id(self) -> None:
        """The run folder was made again; called by one rank."""
        if self._restore is not None:
            self._restore.keep_run_id()

    @property
    def where_in_memory(self) -> str:
        """The folder of this node's snapshots; empty without any."""
        return "" if self._restore is None else self._restore.room.where

    def mark_unsaved(self, step: int) -> None:
        """Keeps this node's snapshots from being swept, as no disk has the state of `step`."""
        if self._restore is not None:
            self._restore.room.mark(Mark(run_dir=str(self._paths.root.absolute()), step=step))

    def _write_part(self, step: int) -> dict[str, Any] | None:
        share = self._kept.share()
        if share is None:
            return None
        try:
            self._kept.check_finite()
        except CheckpointError as exc:
            return {"error": str(exc), "refused": True}
        try:
            return asdict(self._checkpoints.write_part(step, *share))
        except CheckpointError as exc:
            return {"error": str(exc)}

    def _commit(self, progress: Progress, parts: list[dict[str, Any]]) -> str:
        """Makes the checkpoint exist; returns why it does not, empty where it does."""
        try:
            for part in parts:
                if "error" in part:
                    raise CheckpointError(part["error"])
            made = [Part(**{**part, "names": tuple(part["names"])}) for part in parts]
            self._checkpoints.commit(progress.step, made, progress)
            # Memory has such states, too; without it the disk is all there is to go back to.
            self._checkpoints.prune(progress.verified if self._restore is None else None)
        except CheckpointError as exc:
            # Parts without a manifest are no checkpoint, and take room on a disk that may be full.
            self._checkpoints.abandon(progress.step)
            log.warning(
                "no checkpoint of step %d: %s; the next one is tried in its turn",
                progress.step, exc,
            )  # fmt: skip
            return str(exc)
        return ""

    def _damage_anywhere(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with the files that some rank needs; None on all ranks or on none.

        Raises:
            CheckpointError: it is of another model; on all ranks, whichever found it.
        """
        damage, mismatch = None, ""
        try:
            names = self._kept.names(checkpoint.weight_map)
            damage = find_damage(checkpoint, checkpoint.files_of(names))
        except CheckpointError as exc:
            mismatch = str(exc)
        # All ranks take the same checkpoint: one that a single rank cannot read is none.
        num_bad, num_other = self._kept.total([float(bool(damage)), float(bool(mismatch))])
        if num_other:
            raise CheckpointError(
                mismatch or f"{num_other:.0f} other ranks miss their tensors in it"
            )
        return damage or (f"{num_bad:.0f} other ranks cannot read it" if num_bad else None)
