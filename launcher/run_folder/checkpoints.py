"""Checkpoints on disk: found, checked and read, whoever wrote them.

    RUN/checkpoints/step-000000120/
        stage-0.safetensors      tensors of one stage, keyed by the model's own names
        stage-1.safetensors
        manifest.json            which tensor is in which file, sizes, checksums, progress

A checkpoint exists once its manifest does. Nothing here depends on how many stages wrote it (I11).
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bundlerun.launcher.errors import CheckpointError, nearest
from bundlerun.launcher.run_folder.paths import RunPaths

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model."
"""With it begin the names of tensors that are the model's own, and no optimizer's."""
AVERAGE = "ema."
"""Likewise, of the moving average of those."""
REMAINDER = "remainder."
"""Likewise, of what the exchange between nodes has kept back of the gradients of those."""
RAW = "raw_"
"""How metrics of the weights themselves begin, where those of their average have the names."""
_FOLDER = re.compile(r"step-\d{9,}")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run has come."""

    step: int
    epoch: int
    step_in_epoch: int
    samples_seen: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Validation metrics; empty in the middle of an epoch."""
    score: float | None = None
    """How good the validation was, higher is better; None without one."""
    optimizer: str = ""
    """The class of the optimizer; empty: not known."""
    seed: int | None = None
    """What the order of samples is drawn from; None: not known."""
    loss_scale: float = 0.0
    """The factor of the loss in float16; 0: there is none."""
    loss_scale_steps: int = 0
    """Steps that were done with it."""
    verified: int = 0
    """Finished steps of the newest state that replicas were found to have alike."""
    row: Mapping[str, Any] = field(default_factory=dict)
    """What the history says of the last step; known to ranks of the last stage, and only to a
    snapshot, as a step is told before a checkpoint of it is written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One file of a checkpoint, as its writer made it."""

    file: str
    names: tuple[str, ...]
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A complete checkpoint; whether its bytes are intact, `find_damage` says."""

    folder: Path
    progress: Progress
    parts: tuple[Part, ...]
    config: Mapping[str, object]
    versions: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)
    """What is to be known of the data: classes, preprocessing, or what a recipe says."""

    @property
    def step(self) -> int:
        """Finished steps it was taken after."""
        return self.progress.step

    @property
    def weight_map(self) -> dict[str, str]:
        """The file of each tensor."""
        return {name: part.file for part in self.parts for name in part.names}

    def files_of(self, names: Iterable[str]) -> list[str]:
        """The files that hold the tensors `names`, for `find_damage`.

        Raises:
            CheckpointError: a tensor is in none of the files.
        """
        where = self.weight_map
        missing = [name for name in names if name not in where]
        if missing:
            raise CheckpointError(
                f"checkpoint {str(self.folder)!r} has no {missing[0]!r} ({len(missing)} missing); "
                f"{nearest(missing[0], where)}; is it of another --model?"
            )
        return sorted({where[name] for name in names})


def manifest_text(
    progress: Progress,
    parts: Sequence[Part],
    config: Mapping[str, object],
    versions: Mapping[str, str],
    about: Mapping[str, Any] | None = None,
) -> str:
    """The manifest of a checkpoint, JSON, with a checksum over itself."""
    body = {
        "format": FORMAT,
        "step": progress.step,
        "epoch": progress.epoch,
        "step_in_epoch": progress.step_in_epoch,
        "samples_seen": progress.samples_seen,
        "metrics": {name: _json_number(value) for name, value in progress.metrics.items()},
        "score": None if progress.score is None else _json_number(progress.score),
        "optimizer": progress.optimizer,
        **_loss_scale(progress),
        **({"verified": progress.verified} if progress.verified else {}),
        "files": {p.file: {"size_bytes": p.size_bytes, "sha256": p.sha256} for p in parts},
        "weight_map": {name: part.file for part in parts for name in part.names},
        "config": dict(config),
        "versions": dict(versions),
        "about": dict(about or {}),
    }
    return json.dumps({**body, "sha256": _digest(body)}, indent=1)


def _loss_scale(progress: Progress) -> dict[str, Any]:
    """What is there in float16 only."""
    kept = {"value": progress.loss_scale, "num_steps": progress.loss_scale_steps}
    return {"loss_scale": kept} if progress.loss_scale else {}


def _json_number(value: float) -> float | str:
    """JSON has no NaN and no infinity; `float` reads both forms."""
    return float(value) if math.isfinite(value) else str(float(value))


def _digest(body: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(body).encode()).hexdigest()


def read_manifest(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; its files are there and have the right sizes.

    Raises:
        CheckpointError: there is no usable checkpoint in `folder`.
    """
    try:
        body = json.loads((folder / MANIFEST).read_bytes())
        # The checksum is over all but itself.
        stated = body.pop("sha256")
        if stated != _digest(body):
            raise CheckpointError(f"{MANIFEST} does not match its checksum")
        if body["format"] != FORMAT:
            raise CheckpointError(f"{MANIFEST} has format {body['format']}, not {FORMAT}")
        checkpoint = _from_body(folder, body)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise CheckpointError(f"{MANIFEST} cannot be read: {exc}") from exc
    # Sizes are cheap to check for every checkpoint; `find_damage` reads the one that is used.
    for part in checkpoint.parts:
        _check_size(folder / part.file, part.size_bytes)
    return checkpoint


def _from_body(folder: Path, body: dict[str, Any]) -> Checkpoint:
    names: dict[str, list[str]] = {file: [] for file in body["files"]}
    loss_scale = body.get("loss_scale", {})
    for name, file in body["weight_map"].items():
        names[file].append(name)
    return Checkpoint(
        folder=folder,
        progress=Progress(
            step=body["step"],
            epoch=body["epoch"],
            step_in_epoch=body["step_in_epoch"],
            samples_seen=body["samples_seen"],
            metrics={name: float(value) for name, value in body["metrics"].items()},
            score=_score(body),
            optimizer=body.get("optimizer", ""),
            seed=body["config"].get("seed"),
            loss_scale=float(loss_scale.get("value", 0.0)),
            loss_scale_steps=int(loss_scale.get("num_steps", 0)),
            verified=int(body.get("verified", 0)),
        ),
        parts=tuple(
            Part(file=file, names=tuple(names[file]), **what)
            for file, what in body["files"].items()
        ),
        config=body["config"],
        versions=body["versions"],
        about=body.get("about", {}),  # checkpoints of earlier versions have none
    )


def _score(body: Mapping[str, Any]) -> float | None:
    """Manifests of before had none: the first metric decided."""
    found = body.get("score", next(iter(body["metrics"].values()), None))
    return None if found is None else float(found)


def _check_size(path: Path, size_bytes: int) -> None:
    """Raises CheckpointError unless the file is there, whole."""
    try:
        found = path.stat().st_size
    except OSError as exc:
        raise CheckpointError(f"{path.name} is missing") from exc
    if found != size_bytes:
        raise CheckpointError(f"{path.name} has {found} bytes, not {size_bytes}")


class Survey(NamedTuple):
    """What looks complete, newest first, and what is wrong with the other folders, by name.

    It can be pickled, so that one rank looks and all go by the same.
    """

    found: list[Checkpoint]
    broken: dict[str, str]


def survey(paths: RunPaths) -> Survey:
    """Looks through the checkpoints of a run; cheap, as it reads manifests and file sizes only."""
    result = Survey([], {})
    for folder in checkpoint_folders(paths):
        try:
            result.found.append(read_manifest(folder))
        except CheckpointError as exc:
            result.broken[folder.name] = str(exc)
    return result


def checkpoint_folders(paths: RunPaths) -> list[Path]:
    """Folders named as checkpoints are, newest first, whatever is in them."""
    if not paths.checkpoints.is_dir():
        return []
    folders = [f for f in paths.checkpoints.iterdir() if _FOLDER.fullmatch(f.name)]
    return sorted(folders, key=lambda folder: int(folder.name[5:]), reverse=True)


def find_damage(checkpoint: Checkpoint, files: Iterable[str] | None = None) -> str | None:
    """Compares checksums; says what is wrong with the first bad file, None where all are good.

    Args:
        files: the files to read through; all of them where absent.
    """
    wanted = None if files is None else set(files)
    for part in checkpoint.parts:
        if wanted is not None and part.file not in wanted:
            continue
        try:
            with (checkpoint.folder / part.file).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as exc:
            return f"{part.file} cannot be read: {exc.strerror}"
        if found != part.sha256:
            return f"{part.file} does not match its checksum"
    return None


def choose(
    surveyed: Survey, damage_of: Callable[[Checkpoint], str | None] = find_damage
) -> Checkpoint | None:
    """The newest undamaged checkpoint; warns of newer ones that it passes over for it.

    Args:
        damage_of: what is wrong with a checkpoint. Ranks that read different files agree in here:
            each checks its own and all return the same answer.
    """
    damaged = dict(surveyed.broken)
    chosen = None
    for checkpoint in surveyed.found:
        damage = damage_of(checkpoint)
        if damage is None:
            chosen = checkpoint
            break
        damaged[checkpoint.folder.name] = damage
    instead = f"using {chosen.folder.name!r} instead" if chosen else "there is no good one"
    for name in sorted(damaged, reverse=True):
        # Damaged ones that are older than the chosen one make no difference to the run.
        if chosen is None or name > chosen.folder.name:
            log.warning("checkpoint %r is damaged: %s; %s", name, damaged[name], instead)
    return chosen


def best_of(found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the highest score; the newest of equals, None without any."""
    scored = [
        (score, checkpoint.step, checkpoint)
        for checkpoint in found
        if (score := checkpoint.progress.score) is not None and not math.isnan(score)
    ]
    # Without the checkpoint itself, which has no order.
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def read_tensors(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors `names`, in CPU memory, from whichever files hold them; nothing else is read.

    Raises:
        CheckpointError: a tensor is missing or a file cannot be read.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    where, wanted = checkpoint.weight_map, list(names)
    tensors: dict[str, Tensor] = {}
    for file in checkpoint.files_of(wanted):
        path = checkpoint.folder / file
        try:
            with safe_open(path, framework="pt") as opened:
                found = {n: opened.get_tensor(n) for n in wanted if where[n] == file}
                pairs = json.loads((opened.metadata() or {}).get("complex", "[]"))
        except (OSError, SafetensorError) as exc:
            raise CheckpointError(f"cannot read {str(path)!r}: {exc}") from exc
        # A copy: in the file they are aligned to 8 bytes, and complex128 needs 16.
        tensors |= found | {n: torch.view_as_complex(found[n].clone()) for n in pairs if n in found}
    return tensors
