"""The copy of a run's state on disk, written so that no crash can leave half of one.

step-000000120.tmp-TOKEN/    every writing rank puts its own file here, fsynced
    |  all parts are there: one rank adds the manifest
    v
step-000000120/              renamed in one go: from now on the checkpoint exists

step-000000120.old           what lay under the final name before, only while it is replaced
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.run_folder.checkpoints import (
    MANIFEST,
    Checkpoint,
    Part,
    Progress,
    Survey,
    best_of,
    choose,
    find_damage,
    manifest_text,
    read_tensors,
    survey,
)
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.state.tensor_file import write_tensors

_TEMPORARY = re.compile(r"step-\d{9,}\.tmp-.*")
_REPLACED = re.compile(r"(step-\d{9,})\.old")
_MB = 1e6

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run: written by all ranks together, pruned, found again.

    Args:
        paths: the run folder, which every writing rank must see.
        keep: how many of the newest stay; the best stays too.
        token: names the temporary folders. The same on every rank of a round and another one in
            each round, so that a straggler of an earlier round cannot write into a newer file.
        config: kept in the manifest, for people and for `bundlerun export`.
    """

    def __init__(
        self,
        paths: RunPaths,
        keep: int,
        *,
        token: str = "0",
        config: TrainConfig | None = None,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self._paths = paths
        self._keep = keep
        self._token = token
        self._config: dict[str, object] = {} if config is None else config.to_plain()
        self._about = dict(about or {})
        self._newest_written: int | None = None

    def sweep(self) -> None:
        """Clears what a crash has left; by one rank, before any rank of this round writes.

        Raises:
            CheckpointError: the folder cannot be written.
        """
        at = self._paths.checkpoints
        if not at.is_dir():
            return
        try:
            for folder in sorted(at.iterdir()):
                at = folder
                self._sweep_one(folder)
        except OSError as exc:
            raise CheckpointError(f"cannot clear {str(at)!r}: {exc.strerror}") from exc

    def _sweep_one(self, folder: Path) -> None:
        replaced = _REPLACED.fullmatch(folder.name)
        # A death between the two renames of `_move`: the old one is whole, and the only one.
        if replaced and not folder.with_name(replaced[1]).exists():
            log.warning("checkpoint %r is put back", replaced[1])
            folder.replace(folder.with_name(replaced[1]))
        elif replaced or _TEMPORARY.fullmatch(folder.name):
            shutil.rmtree(folder)

    def write_part(self, step: int, name: str, tensors: Mapping[str, Tensor]) -> Part:
        """Writes one rank's file of the checkpoint of `step`; nothing counts before `commit`.

        Args:
            name: of the part, such as `stage-0`; each writing rank has its own.
            tensors: as `bundlerun.workers.state.named` gives them. They must not change meanwhile.

        Raises:
            CheckpointError: the disk is full or cannot be written; nothing of the part is left.
        """
        folder = self._temporary(step)
        path = folder / f"{name}.safetensors"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            written = write_tensors(path, tensors)
            # The file's name, too, must survive a power cut, before anybody counts on the part.
            _sync_folder(folder)
        except OSError as exc:
            with suppress(OSError):  # what made the writing fail may make this fail, too
                path.unlink(missing_ok=True)
            raise self._cannot_write(path, exc) from exc
        return Part(file=path.name, names=tuple(tensors), **written._asdict())

    def commit(self, step: int, parts: Sequence[Part], progress: Progress) -> Path:
        """Makes the checkpoint of `step` exist; by one rank, once all parts are written.

        Returns:
            Its folder.

        Raises:
            CheckpointError: a part is not there or the disk is full. The older ones stay.
        """
        folder, final = self._temporary(step), self._paths.checkpoint(step)
        try:
            # Sizes as this rank sees them: a folder that is not shared is found out here.
            _check_parts(folder, parts)
            # The manifest comes last, then the name without `.tmp`: before it nothing counts.
            text = manifest_text(progress, parts, self._config, _versions(), self._about)
            _write_text(folder / MANIFEST, text)
            _sync_folder(folder)
            _move(folder, final)
        except OSError as exc:
            raise self._cannot_write(folder, exc) from exc
        self._newest_written = step
        return final

    def abandon(self, step: int) -> None:
        """Removes what was written of the checkpoint of `step`; by one rank, after a failure."""
        shutil.rmtree(self._temporary(step), ignore_errors=True)

    def survey(self) -> Survey:
        """What there is; cheap. Where ranks decide together, one looks and hands it to all."""
        return survey(self._paths)

    def candidates(self) -> list[Checkpoint]:
        """The complete-looking checkpoints, newest first; reads manifests and file sizes only."""
        return self.survey().found

    def newest(
        self,
        damage_of: Callable[[Checkpoint], str | None] = find_damage,
        surveyed: Survey | None = None,
    ) -> Checkpoint | None:
        """The newest undamaged checkpoint; warns of those that are passed over for it.

        Args:
            damage_of: what is wrong with a checkpoint; see `checkpoints.choose`.
            surveyed: what to choose from, where another rank has looked.
        """
        return choose(self.survey() if surveyed is None else surveyed, damage_of)

    def load(self, checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors `names` in CPU memory, whichever split wrote them.

        Raises:
            CheckpointError: a tensor is missing.
        """
        return read_tensors(checkpoint, names)

    def prune(self, verified: int | None = None) -> list[int]:
        """Removes all but the newest `keep`, the best, and what a run may have to go back to.

        By one rank, after `commit`.

        Args:
            verified: finished steps of a state that is; None: nobody knows.

        Returns:
            The steps removed.
        """
        found = self._countable()
        kept = {checkpoint.step for checkpoint in found[: self._keep]}
        best = best_of(found)
        # The best may be older than all that are kept for being new.
        if best is not None:
            kept.add(best.step)
        if verified is not None:
            # The newest that is verified, and the next that will be: else none would get so old.
            kept.update([c.step for c in found if c.step <= verified][:1])
            kept.update([c.step for c in found if c.step > verified][-1:])
        return [c.step for c in found if c.step not in kept and self._remove(c.folder)]

    def _countable(self) -> list[Checkpoint]:
        """Candidates without those beyond the newest written.

        A run that resumed from before them found them damaged: they must not push out good ones.
        """
        limit = self._newest_written
        return [c for c in self.candidates() if limit is None or c.step <= limit]

    def _remove(self, folder: Path) -> bool:
        """Renames first: a crash in the middle must not leave a damaged checkpoint."""
        doomed = folder.with_name(f"{folder.name}.tmp-pruned")
        try:
            folder.replace(doomed)
            shutil.rmtree(doomed)
        except OSError as exc:
            log.warning("cannot remove the old checkpoint %r: %s", folder.name, exc.strerror)
            return False
        return True

    def _temporary(self, step: int) -> Path:
        final = self._paths.checkpoint(step)
        return final.with_name(f"{final.name}.tmp-{self._token}")

    def _cannot_write(self, path: Path, exc: OSError) -> CheckpointError:
        return CheckpointError(
            f"cannot write checkpoint file {str(path)!r}: {exc.strerror or exc}; "
            f"{_free(self._paths.root)}; the older checkpoints stay"
        )


def _check_parts(folder: Path, parts: Sequence[Part]) -> None:
    for part in parts:
        path = folder / part.file
        found = path.stat().st_size if path.is_file() else None
        if found != part.size_bytes:
            raise CheckpointError(
                f"{str(path)!r} was written by another rank with {part.size_bytes} bytes, here it "
                f"has {'none' if found is None else found}; --run-dir must be a folder that all "
                "nodes share"
            )
    named = [name for part in parts for name in part.names]
    assert len(named) == len(set(named)), "two parts of a checkpoint hold the same tensor"


def _move(folder: Path, final: Path) -> None:
    """Puts `folder` under its final name, in place of what may be there; or leaves that."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        if old.exists():
            shutil.rmtree(old)
        # Two renames, as a folder cannot replace one with files in it.
        final.replace(old)
    try:
        folder.replace(final)
    except OSError:
        if old.exists():
            old.replace(final)
        raise
    _sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Makes the names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free(folder: Path) -> str:
    """How much room is left, as the end of a message."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / _MB:.1f} MB are free"


def _versions() -> dict[str, str]:
    try:
        own = version("bundlerun")
    except PackageNotFoundError:
        own = "not installed"
    return {"bundlerun": own, "torch": str(torch.__version__)}
