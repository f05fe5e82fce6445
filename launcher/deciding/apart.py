"""Profiles a model in a process of its own: the launcher needs no torch, and the memory is free.

python -m bundlerun.launcher.deciding.apart 4,16 cpu OUT [OPTIONS] DATA    prints {} or an error
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bundlerun.launcher.choices import DeviceKind
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import BundleError, ConfigError, NodeError
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.profile_file import from_plain, write
from bundlerun.launcher.planning.profile_request import ProfileRequest

LIMIT_S = 900.0
"""The longest that a profile may take."""
_WORKER_MODULE = "bundlerun.workers.train"
_KINDS: Mapping[str, DeviceKind] = {"cpu": "cpu", "gpu": "gpu"}


def profile_apart(
    train: TrainConfig,
    sizes: Sequence[int],
    kind: DeviceKind,
    out: Path,
    environment: Mapping[str, str],
) -> Profile:
    """Measures what a model costs on this machine.

    Args:
        train: what is trained; its shape counts for nothing.
        sizes: samples of micro-batches.
        kind: of the device to compute on.
        out: where the profile is written.
        environment: of the process.

    Raises:
        BundleError: the data or the model does not do for it.
    """
    words = [",".join(map(str, sizes)), kind, str(out), *train.to_argv()]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "bundlerun.launcher.deciding.apart", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env=dict(environment),
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as exc:
        raise NodeError(
            f"the profile of {train.model} took longer than {LIMIT_S:.0f} s; give a --shape and "
            "--cut, or a smaller --microbatch-size"
        ) from exc
    try:
        answer = json.loads(done.stdout.decode().strip().rpartition("\n")[2])
    except ValueError as exc:
        raise NodeError(
            f"the process that profiles {train.model} ended with code {done.returncode}; what it "
            "said stands above; give a --shape and --cut to go on without"
        ) from exc
    if "error" in answer:
        raise ConfigError(answer["error"])
    return from_plain(json.loads(out.read_text(encoding="utf-8")))


def main(argv: Sequence[str]) -> int:
    """Profiles, and writes it."""
    from bundlerun.launcher.train_argv import read_train_argv

    sizes, kind, out, *words = argv
    answer: dict[str, str] = {}
    try:
        config = read_train_argv(words, os.environ).value
        wanted = ProfileRequest(sizes=tuple(map(int, sizes.split(","))), kind=_KINDS[kind])
        write(Path(out), importlib.import_module(_WORKER_MODULE).profiled(config, wanted))
    except BundleError as exc:
        answer = {"error": str(exc)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
