"""`python -m bundlerun.slurm.batch`: what a batch script ends in, on the first node of its job.

It starts the job's step (`srun`), hands Slurm's signals on to it, and at its end sees to it that
the job is requeued, or ends with a state that is true.

    batch script -> slurm.batch -> srun -> slurm.node on each node -> bundlerun run
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import FrameType

from bundlerun.launcher.agreement.continuation import newest_step
from bundlerun.launcher.errors import EXIT_RESUMABLE, BundleError, ConfigError
from bundlerun.launcher.run_folder.events import EventName, Events, name_of, read_events
from bundlerun.launcher.run_folder.outcome import read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.slurm.claim import take
from bundlerun.slurm.jobs import Slurm, SlurmError
from bundlerun.slurm.verdict import End, RunState, Verdict, judge, refuse
from bundlerun.slurm.versions import versions
from bundlerun.slurm.watch.asker import Asker
from bundlerun.slurm.watch.pulse import pulse

NONCE_VARIABLE = "BUNDLERUN_SLURM_NONCE"
VERSIONS_VARIABLE = "BUNDLERUN_SLURM_VERSIONS"
POLL_S = 0.5
LINGER_S = 15.0
"""How long srun may last once the run is over, seconds.

It waits for tasks on dead nodes until Slurm takes note of their death, by default for 5 minutes.
"""
LEAVE_S = 60.0
"""How long Slurm may take to end this process after a requeue, seconds."""
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchJob:
    """What the batch script's environment says of the job."""

    job_id: int
    restarts: int
    node: str

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> BatchJob:
        """Reads Slurm's variables.

        Raises:
            ConfigError: this is no batch script of Slurm's.
        """
        if not environ.get("SLURM_JOB_ID", "").isdecimal():
            raise ConfigError("SLURM_JOB_ID is not set: submit this script with sbatch")
        return cls(
            job_id=int(environ["SLURM_JOB_ID"]),
            restarts=int(environ.get("SLURM_RESTART_COUNT") or 0),
            node=environ.get("SLURMD_NODENAME") or socket.gethostname(),
        )


class Batch:
    """One start of the job.

    Args:
        job: what Slurm says of it.
        paths: of the run, on a file system that all nodes share.
        budget: requeues in all.
        slurm: the commands.
        say: tells the reader of the job's log.
    """

    def __init__(
        self,
        job: BatchJob,
        paths: RunPaths,
        *,
        budget: int,
        slurm: Slurm,
        say: Callable[[str], None],
    ) -> None:
        self._job = job
        self._paths = paths
        self._budget = budget
        self._slurm = slurm
        self._say = say
        self._events = Events(paths.node_events(job.node), job.node)
        self._asker = Asker(paths)
        self._signals = 0

    def run(self, command: Sequence[str], environ: Mapping[str, str]) -> int:
        """Runs the step to its end and returns the job's exit code.

        Raises:
            BundleError: the job cannot begin.
        """
        # First of all: another job with this run folder must not lose its outcome to this start.
        claim = take(self._paths, self._job.job_id, self._slurm)
        # A requeue that came too late, by an operator perhaps: there is nothing left to do.
        if self._job.restarts and read_end(self._paths, 0).state is RunState.DONE:
            self._say("the run was finished before this start")
            return 0
        # Helps `bundlerun status JOB` and later submits; the run does not depend on it.
        with suppress(BundleError):
            self._slurm.tell_run_dir(self._job.job_id, str(self._paths.root))
        # The starts are read back from the log on disk: no process of ours outlives a requeue.
        begun = self._note_start()
        # Judged again: Slurm or an operator may have requeued the job without our verdict.
        refusal = refuse(restarts=self._job.restarts - 1, budget=self._budget, starts=begun[:-1])
        if refusal and self._job.restarts:
            self._say(f"job {self._job.job_id} is not started again: {refusal}")
            return 1
        # What an earlier start left would be taken for this one's end, or would stop it at once.
        for old in (self._paths.outcome, self._paths.drain):
            old.unlink(missing_ok=True)
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        shared = {NONCE_VARIABLE: claim.nonce, VERSIONS_VARIABLE: json.dumps(versions())}
        # A session of its own: what Slurm sends to this script goes on to the step once, from here.
        step = subprocess.Popen(
            command, env={**environ, **shared}, start_new_session=True, stdin=subprocess.DEVNULL
        )
        with pulse(self._paths, claim.nonce):
            code = self._wait(step)
        # Progress is a newer step in the history than the one this start began with.
        end = self._end(code, has_stepped=newest_step(self._paths) > begun[-1])
        verdict = judge(end, restarts=self._job.restarts, budget=self._budget, starts=begun)
        self._say(verdict.text)
        self._note("slurm: step ends", {"srun": code, "verdict": verdict.text})
        return self._carry_out(verdict)

    def _wait(self, step: subprocess.Popen[bytes]) -> int:
        """Waits for srun, or until the run has been over for a while."""
        over_since: float | None = None
        while True:
            try:
                return step.wait(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                # A start of the run removes older requests: ours may have been among them.
                self._asker.insist()
            if self._paths.outcome.exists():
                # The outcome is on disk, so that no task's exit code is needed any more.
                over_since = over_since or time.monotonic()
                if time.monotonic() - over_since > LINGER_S:
                    self._say("the run is over; srun still waits for a node that is gone")
                    step.kill()
                    return step.wait()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        name = signal.Signals(number).name
        self._note("slurm: signal", {"signal": name})
        # Slurm may send several; the log says it once, the event log each.
        if self._signals == 1:
            self._say(f"{name}: the run is told to write a checkpoint and to stop")
        self._asker.ask(name)

    def _end(self, code: int, *, has_stepped: bool) -> End:
        # Slurm may signal the nodes only: then their events are all that this script has.
        was_signalled = self._asker.has_asked or self._others_were_signalled()
        end = read_end(self._paths, code)
        return replace(end, was_signalled=was_signalled, has_stepped=has_stepped)

    def _others_were_signalled(self) -> bool:
        """Whether Slurm's signal went to a node and not to this script."""
        return any(
            name_of(row) == "slurm: signal" and self._is_ours(row)
            for row in read_events(self._paths.events)
        )

    def _is_ours(self, row: Mapping[str, object]) -> bool:
        # The event log of a run folder spans all its jobs and starts.
        return (row.get("job"), row.get("restart")) == (self._job.job_id, self._job.restarts)

    def _note(self, event: EventName, details: Mapping[str, object] | None = None) -> None:
        job = {"job": self._job.job_id, "restart": self._job.restarts}
        self._events.note(event, {**job, **(details or {})})

    def _note_start(self) -> list[int]:
        """Notes where this start begins and returns where all of this job's began."""
        self._note("slurm: job starts", {"step": newest_step(self._paths)})
        return [
            int(row.get("step", 0))
            for row in read_events(self._paths.events)
            if name_of(row) == "slurm: job starts" and row.get("job") == self._job.job_id
        ]

    def _carry_out(self, verdict: Verdict) -> int:
        if not verdict.requeue:
            return verdict.exit_code
        before = self._signals  # Slurm's may come before its answer
        try:
            if not self._slurm.requeue(self._job.job_id, self._job.restarts):
                return EXIT_RESUMABLE  # cancelled, or requeued by somebody else
        except SlurmError as exc:
            self._say(f"cannot requeue: {exc}")
            return EXIT_RESUMABLE
        self._note("slurm: requeues")
        deadline = time.monotonic() + LEAVE_S
        while time.monotonic() < deadline and self._signals == before:
            time.sleep(POLL_S)
        return EXIT_RESUMABLE


def read_end(paths: RunPaths, srun_code: int) -> End:
    """What the run says of its end, in addition to what srun says."""
    outcome = read_outcome(paths)
    if outcome is None:
        return End(state=RunState.UNKNOWN, srun_code=srun_code)
    return End(
        state=RunState(outcome.state),
        srun_code=srun_code,
        code=outcome.exit_code,
        reason=outcome.reason,
    )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bundlerun.slurm.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--requeue-budget", type=int, default=20, help="requeues in all (default: 20)"
    )
    parser.add_argument("command", nargs="+", metavar="SRUN ...", help="what starts the step")
    return parser.parse_args(argv)


def run_dir_of(command: Sequence[str]) -> Path:
    """The run folder that the step is told, the last where there are several.

    Raises:
        ConfigError: it is told none.
    """
    found = ""
    for word, following in pairwise([*command, ""]):
        # The last one wins, as in argparse.
        if word in ("--run-dir", "--run_dir"):
            found = following
        elif word.startswith(("--run-dir=", "--run_dir=")):
            found = word.partition("=")[2]
    if not found:
        raise ConfigError("the step has no --run-dir; give it one that all nodes share")
    return Path(found).absolute()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one start of the job."""
    args = parse(sys.argv[1:] if argv is None else argv)
    try:
        return Batch(
            BatchJob.from_environ(os.environ),
            RunPaths(run_dir_of(args.command)),
            budget=args.requeue_budget,
            slurm=Slurm(),
            say=say,
        ).run(args.command, os.environ)
    except BundleError as exc:
        say(f"error: {exc}")
        return exc.exit_code


def say(text: str) -> None:
    """Tells the reader of the job's log."""
    print(f"bundlerun: {text}", file=sys.stderr, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
