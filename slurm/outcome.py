"""How a run ended, as its folder tells it."""

from __future__ import annotations

import json

from launcher.errors import EXIT_FAILED
from launcher.paths import RunPaths
from slurm.verdict import End, RunState


def read_end(paths: RunPaths, srun_code: int) -> End:
    """What the run says of its end, beside what srun says; unknown without a legible file."""
    try:
        body = json.loads(paths.outcome.read_text(encoding="utf-8"))
        state = RunState(body["state"])
        code, reason = int(body.get("exit_code", EXIT_FAILED)), str(body.get("reason", ""))
    except (OSError, ValueError, KeyError, TypeError):
        return End(state=RunState.UNKNOWN, srun_code=srun_code)
    return End(state=state, srun_code=srun_code, code=code, reason=reason)
