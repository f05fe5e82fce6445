"""Starts four ranks of `actor.py` here, as `bundlerun run` starts `bundlerun.workers.train`.

python launch_actor.py RUN_DIR ACT [OPTION...]
"""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

from bundlerun.launcher.agent import elastic
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.launch_config import LaunchConfig
from bundlerun.launcher.layout.hardware import read_hardware
from bundlerun.launcher.meeting.network import resolve_meeting
from bundlerun.launcher.options.declared import Resolved
from bundlerun.launcher.plan import plan_here


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(run_dir: str, act: str, *options: str) -> int:
    os.environ["ACT"] = act
    values = dict(option.split("=") for option in options)
    launch = LaunchConfig(
        slots=4, max_restarts=int(values.get("max-restarts", 0)), tee=values.get("tee", "")
    )
    plan = plan_here(
        Resolved(TrainConfig(data="synthetic", run_dir=run_dir), {}),
        Resolved(launch, {}),
        hardware=read_hardware(os.environ),
        meeting=resolve_meeting(launch),
        node_name="n1",
    )
    return elastic.launch(dataclasses.replace(plan, module="actor"), say=say)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    sys.exit(main(*sys.argv[1:]))
