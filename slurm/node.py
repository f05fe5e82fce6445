"""One node's part of a job step, started by srun.

    python -m bundlerun.slurm.node RUN-OPTION... DATA

It checks that this node fits the others, starts `bundlerun run`, hands Slurm's signals on to it,
and looks whether the job's first node is still there. With that node the batch script and srun are
gone and nothing would ever end the job: the survivors write a checkpoint, then one requeues it.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from bundlerun.launcher.commands.arguments.run import add_config_arguments
from bundlerun.launcher.commands.run import read_configs
from bundlerun.launcher.errors import EXIT_FAILED, BundleError, ConfigError
from bundlerun.launcher.options.endpoints import Endpoint
from bundlerun.launcher.process import die_with_parent
from bundlerun.launcher.run_folder.events import EventName, Events
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.train_argv import train_words
from bundlerun.slurm.batch import NONCE_VARIABLE, VERSIONS_VARIABLE, say
from bundlerun.slurm.claim import check_shared
from bundlerun.slurm.jobs import Slurm
from bundlerun.slurm.task import SlurmTask
from bundlerun.slurm.versions import check_versions, versions
from bundlerun.slurm.watch.asker import Asker
from bundlerun.slurm.watch.lookout import Lookout
from bundlerun.slurm.watch.pulse import read_pulse

POLL_S = 0.5
DRAIN_S = 7.0
"""How long survivors may take for their checkpoint once the first node is lost, seconds."""
TURN_S = 2.0
"""Survivors ask for a requeue one after the other, in the order of nodes, seconds apart."""
ASK_S = 300.0
"""How long a survivor keeps asking, seconds; slurmctld may be down."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class NodeTask:
    """The agent of this node, and the watch over the first one.

    Args:
        task: what Slurm says of this process.
        paths: of the run.
        lookout: watches the first node; None on the first node, and outside our batch script.
        slurm: the commands, to requeue the job.
    """

    def __init__(
        self, task: SlurmTask, paths: RunPaths, lookout: Lookout | None, slurm: Slurm
    ) -> None:
        self._task = task
        self._events = Events(paths.node_events(task.node), task.node)
        self._asker = Asker(paths)
        self._lookout = lookout
        self._slurm = slurm
        self._agent: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> int:
        """Runs the agent to its end and returns its exit code."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        # Read before the fork: afterwards the child could see another process as its parent.
        parent = os.getpid()
        # A session of its own: Slurm signals whole process groups, and ranks die of its signals.
        self._agent = subprocess.Popen(
            command, start_new_session=True, preexec_fn=lambda: die_with_parent(parent)
        )
        code = self._wait(self._agent, watched=True)
        # Nobody leaves before it is known that somebody is there to end the job.
        while self._lookout is not None and self._lookout.is_silent and not self._lookout.is_lost:
            time.sleep(POLL_S)
            self._lookout.look()
        if self._lookout is not None and self._lookout.is_lost:
            self._take_over(self._agent)
        return code

    def _wait(
        self, agent: subprocess.Popen[bytes], *, watched: bool = False, limit_s: float = math.inf
    ) -> int:
        """The agent's exit code; or that the first node is lost, or the time is over."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            try:
                return agent.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                # A start of the run removes older requests: ours may have been among them.
                self._asker.insist()
                if watched and self._lookout is not None:
                    self._lookout.look()
                    # With the agent still alive: from here on its time is limited.
                    if self._lookout.is_lost:
                        break
        return EXIT_FAILED

    def _take_over(self, agent: subprocess.Popen[bytes]) -> None:
        """The first node is lost: has the run write a checkpoint, and the job start again."""
        first, node = self._task.nodes[0], self._task.node
        self._note("slurm: first node lost", {"first": first})
        say(f"{node}: first node {first} is lost, and with it the batch script")
        lost_s = time.monotonic()
        if agent.poll() is None:
            self._asker.ask(f"node {first} is lost")
            self._wait(agent, limit_s=DRAIN_S)
        # The first node is lost, so the second has turn 0. By the next turn the requeue has taken
        # effect, and `requeue` sees that by the state or by the restarts: it happens once.
        turn = max(0, self._task.nodes.index(node) - 1)
        time.sleep(TURN_S * turn)
        while time.monotonic() < lost_s + ASK_S:
            try:
                if self._slurm.requeue(self._task.job_id, self._task.restarts):
                    self._note("slurm: requeues")
                    say(f"{node}: job {self._task.job_id} is requeued")
                break
            except BundleError as exc:
                say(f"{node}: cannot requeue yet: {exc}")
                time.sleep(TURN_S)
        self._wait(agent, limit_s=ASK_S)  # Slurm ends it

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._note("slurm: signal", {"signal": signal.Signals(number).name})
        # SIGINT goes to the agent as it is; the others ask the run for a checkpoint first.
        is_asked = number != signal.SIGINT and self._asker.ask(signal.Signals(number).name)
        if not is_asked and self._agent is not None and self._agent.poll() is None:
            self._agent.send_signal(number)

    def _note(self, event: EventName, details: Mapping[str, object] | None = None) -> None:
        job = {"job": self._task.job_id, "restart": self._task.restarts}
        self._events.note(event, {**job, **(details or {})})


def lookout_of(task: SlurmTask, endpoints: Sequence[Endpoint], paths: RunPaths) -> Lookout | None:
    """The watch over the job's first node; None where this is the first.

    Args:
        endpoints: of the candidates, the first node's first.
    """
    # The first node needs no watch: with it this process is gone, too.
    if len(task.nodes) < 2 or task.node == task.nodes[0]:
        return None
    # A node always answers itself, which would say nothing about its cable.
    own = task.candidates.index(task.node) if task.node in task.candidates else -1
    first, *others = endpoints
    reachable = [each.host for i, each in enumerate(others, 1) if i != own]
    return Lookout(
        first=first.host, others=reachable, port=first.port, pulse=partial(read_pulse, paths)
    )


def start(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Starts and ends this node's part of the step.

    Raises:
        BundleError: it cannot take part.
    """
    task = SlurmTask.from_environ(environ)
    if task is None:
        raise ConfigError("this is no task of a job step; start it with srun")
    parser = argparse.ArgumentParser(prog="bundlerun run", allow_abbrev=False)
    add_config_arguments(parser)
    train, launch = read_configs(parser.parse_args(train_words(words)), environ)
    paths = RunPaths(Path(train.value.run_dir).absolute())
    nonce = environ.get(NONCE_VARIABLE, "")
    # Set by our batch script; without that there is nothing to compare with.
    if nonce:
        check_shared(paths.root, nonce, task.node)
        check_versions(environ[VERSIONS_VARIABLE], versions(), node=task.node, first=task.nodes[0])
    endpoints = launch.value.endpoints
    lookout = lookout_of(task, endpoints, paths) if nonce and endpoints else None
    command = [sys.executable, "-m", "bundlerun", "run", *words]
    return NodeTask(task, paths, lookout, Slurm()).run(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs this node's part and returns the agent's exit code."""
    try:
        return start(sys.argv[1:] if argv is None else argv, os.environ)
    except BundleError as exc:
        say(f"error: {exc}")
        return exc.exit_code


if __name__ == "__main__":
    sys.exit(main())
