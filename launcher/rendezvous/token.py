"""The run's secret: made by the node that comes first, read by all that share the run folder."""

from __future__ import annotations

import secrets

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.run_folder.files import create_text
from bundlerun.launcher.run_folder.paths import RunPaths

TOKEN_BYTES = 32


def ensure_token(paths: RunPaths) -> str:
    """The file with the token of this run, which is made where there is none yet.

    It is linked into place whole and only once: of nodes that come at the same time one makes it,
    and none reads half of it. Its owner alone may read it.

    Returns:
        Its path, for `--rdzv-conf token_file`.

    Raises:
        NodeError: the folder cannot be written.
    """
    file = paths.token
    if file.exists():
        return str(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        create_text(file, secrets.token_hex(TOKEN_BYTES), mode=0o600)
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise NodeError(
            f"cannot write {str(file)!r}: {reason}; give another --run-dir, or set "
            "BUNDLERUN_TOKEN to the same secret on all nodes and --rdzv-conf token_file="
        ) from exc
    return str(file)
