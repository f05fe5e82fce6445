"""Saves and resumes a run's state, all ranks together."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.checkpoints import Checkpoint, Part, Progress, Survey, find_damage
from launcher.config import TrainConfig
from launcher.errors import CheckpointError, NodeError
from launcher.paths import RunPaths
from workers.checkpoint import Checkpoints
from workers.session import Session
from workers.state import load_state_tensors, stage_names, state_tensors
from workers.trainer import Trainer

log = logging.getLogger(__name__)


class Keeper:
    """The checkpoints of a run as one rank deals with them.

    The ranks of bundle 0 write, one file per stage; all ranks read.
    """

    def __init__(self, config: TrainConfig, session: Session, trainer: Trainer) -> None:
        self._session = session
        self._trainer = trainer
        self._run_dir = config.run_dir
        self._checkpoints = Checkpoints(
            RunPaths(Path(config.run_dir)), config.keep, token=session.token, config=config
        )

    def resume(self) -> Progress | None:
        """Loads the newest checkpoint that every rank can read whole; None where there is none.

        Collective: every active rank.

        Raises:
            CheckpointError: the checkpoints are of another model.
        """
        chosen = self._checkpoints.newest(self._damage_anywhere, self._agreed_survey())
        if chosen is None:
            return None
        stage = self._trainer.stage
        names = stage_names(stage, chosen.weight_map)
        load_state_tensors(stage, self._trainer.optimizer, self._checkpoints.load(chosen, names))
        return chosen.progress

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint; where that fails, says so and goes on without it.

        Collective: bundle 0; nothing to do elsewhere.
        """
        if self._session.place.bundle != 0:
            return
        found = self._session.gather_bundle(self._write_part(progress.step))
        if self._session.is_reporter:
            self._commit(progress, [f for f in found if f is not None])

    def _write_part(self, step: int) -> dict[str, Any] | None:
        if not self._session.is_writer:
            return None
        tensors = state_tensors(self._trainer.stage, self._trainer.optimizer)
        name = f"stage-{self._session.place.stage}"
        try:
            return asdict(self._checkpoints.write_part(step, name, tensors))
        except CheckpointError as exc:
            return {"error": str(exc)}

    def _commit(self, progress: Progress, parts: list[dict[str, Any]]) -> None:
        try:
            for part in parts:
                if "error" in part:
                    raise CheckpointError(part["error"])
            made = [Part(**{**part, "names": tuple(part["names"])}) for part in parts]
            self._checkpoints.commit(progress.step, made, progress)
            self._checkpoints.prune()
        except CheckpointError as exc:
            self._checkpoints.abandon(progress.step)
            log.warning("no checkpoint of step %d: %s; training goes on", progress.step, exc)

    def _agreed_survey(self) -> Survey:
        """What there is, by the reporter's eyes, as this rank reads it."""
        store = self._session.store
        if self._session.is_reporter:
            self._checkpoints.sweep()
            seen = self._checkpoints.survey()
            store.set("checkpoints", json.dumps([[c.step for c in seen.found], seen.broken]))
        steps, broken = json.loads(store.get("checkpoints"))
        own = {c.step: c for c in self._checkpoints.candidates()}
        missing = [step for step in steps if step not in own]
        if missing:
            raise NodeError(
                f"this node does not see checkpoint {missing[0]} in --run-dir {self._run_dir!r}; "
                "use a folder that all nodes share"
            )
        return Survey([own[step] for step in steps], broken)

    def _damage_anywhere(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with the files that some rank needs; None on all ranks or on none.

        Raises:
            CheckpointError: it is of another model; on all ranks, whichever found it.
        """
        damage, mismatch = None, ""
        try:
            names = stage_names(self._trainer.stage, checkpoint.weight_map)
            damage = find_damage(checkpoint, checkpoint.files_of(names))
        except CheckpointError as exc:
            mismatch = str(exc)
        num_bad, num_other = self._trainer.total([float(bool(damage)), float(bool(mismatch))])
        if num_other:
            raise CheckpointError(
                mismatch or f"{num_other:.0f} other ranks miss their tensors in it"
            )
        return damage or (f"{num_bad:.0f} other ranks cannot read it" if num_bad else None)
