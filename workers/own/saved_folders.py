"""The folders that a loop saves its checkpoints to, each of them its own while the loop lives.

Two programs that each believe to be alone would delete one another's checkpoints, or mix theirs. A
folder is claimed as a run folder is (`bundlerun.launcher.agreement.claim`), by the rank that speaks
for the job, and free again once the loop has closed its bundle, or its process has ended.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from bundlerun.launcher.agreement.claim import Claim, holder_now
from bundlerun.launcher.errors import BundleError, ConfigError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv
from bundlerun.workers.rank.run_start import holder_of_rank

log = logging.getLogger(__name__)


class SavedFolders:
    """Claims of one rank; the others wait for what it says.

    Args:
        env: of this rank.
        keeps: ends the claims with it.
    """

    def __init__(self, env: RankEnv, keeps: ExitStack) -> None:
        self._env = env
        self._keeps = keeps
        self._own: set[Path] = set()

    def refusal(self, folder: Path) -> BundleError | None:
        """Claims a folder if that is not yet done; says why it cannot be had."""
        place = folder.resolve()
        if place in self._own:
            return None
        paths = RunPaths(folder)
        claim = Claim(paths, holder_of_rank(self._env, "a loop of its own"), log.warning)
        try:
            claim.take(begins_run=False).hold()
        except BundleError as exc:
            holder = holder_now(paths)
            return ConfigError(self._in_use(folder, holder)) if holder else exc
        self._keeps.callback(claim.release)
        self._own.add(place)
        return None

    def _in_use(self, folder: Path, holder: str) -> str:
        text = (
            f"cannot save to {str(folder)!r}: {holder} has the folder; save to another one, or end "
            "that first"
        )
        if self._env.is_launched:
            return text
        return (
            f"{text}; nobody has told this process of others: where both are to be ranks of one "
            "job, start them with bundlerun or torchrun"
        )
