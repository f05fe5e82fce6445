"""Another start in a run folder: what it continues from, what has changed, what is done already."""

from __future__ import annotations

import json

from bundlerun.launcher.agreement.agreed import Terms, changes, kept_terms
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.checkpoints import checkpoint_folders, survey
from bundlerun.launcher.run_folder.files import write_text
from bundlerun.launcher.run_folder.history import read_last_rows
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths

_TAIL_BYTES = 65536


def newest_step(paths: RunPaths) -> int:
    """How far the run has come: the newest checkpoint, or the last step of its history."""
    folders = checkpoint_folders(paths)
    steps = [int(folders[0].name.rpartition("-")[2])] if folders else [0]
    told = [row.get("step") for row in read_last_rows(paths.metrics, _TAIL_BYTES)]
    return max(steps + [step for step in told if isinstance(step, int)][-1:])


def has_begun(paths: RunPaths | None) -> bool:
    """Whether there is something in the folder that a start would continue from."""
    return paths is not None and newest_step(paths) > 0


def changed_lines(paths: RunPaths, terms: Terms) -> list[str]:
    """What is not as at the last start in this folder, a line each; nothing in a new one.

    Raises:
        ConfigError: something has changed that a run must keep when it continues.
    """
    kept = read_terms(paths)
    if not kept or not has_begun(paths):
        return []
    changed = changes(kept, terms)
    barred = [text for name, text in changed.items() if name in kept_terms()]
    if barred:
        raise ConfigError(
            f"the run in {str(paths.root)!r} cannot go on so: {'; '.join(barred)}; give another "
            "--run-dir for a new run, or what it was before"
        )
    return list(changed.values())


def keep_terms(paths: RunPaths, terms: Terms) -> None:
    """Keeps them for the next start.

    Raises:
        OSError: the folder cannot be written.
    """
    write_text(paths.terms, json.dumps(dict(terms), indent=1) + "\n")


def unlike_lines(paths: RunPaths, terms: Terms) -> list[str]:
    """What a run that repeats the one in `paths` has not alike besides options, a line each."""
    changed = changes(read_terms(paths), terms)
    return [text for name, text in changed.items() if not name.startswith("--")]


def read_terms(paths: RunPaths) -> dict[str, str]:
    """Those of the last start in this folder; nothing where there was none."""
    try:
        found = json.loads(paths.terms.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}


def why_done(paths: RunPaths, config: TrainConfig) -> str:
    """Says so where the run in this folder has done all that `config` asks for; else empty."""
    outcome = read_outcome(paths)
    if outcome is None or outcome.state != "done":
        return ""
    newest = next(iter(survey(paths).found), None)
    if newest is None or newest.step != outcome.step:
        return ""
    progress = newest.progress
    if 0 < config.max_steps <= progress.step:
        more = f"--max-steps above {config.max_steps}"
    elif progress.epoch >= config.epochs:
        more = f"--epochs above {config.epochs}"
    else:
        return ""
    return (
        f"the run in {str(paths.root)!r} is done already, after step {progress.step}; give {more} "
        "to go on with it, or another --run-dir for a new run"
    )
