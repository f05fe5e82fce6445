"""The run folder of a rank that no agent of ours has started: which it is, and its claim.

torchrun                    the first rank claims it for the agent, which outlives its ranks
another launcher            the first rank claims it
nobody                      this process does
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from bundlerun.launcher.agreement.agreed import Terms, terms_of
from bundlerun.launcher.agreement.claim import Claim
from bundlerun.launcher.agreement.continuation import changed_lines
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.meeting.addresses import is_loopback
from bundlerun.launcher.meeting.default_folder import (
    NO_FOLDER,
    entered,
    folder_of_job,
    is_latest,
    new_folder,
)
from bundlerun.launcher.meeting.site import site_job
from bundlerun.launcher.process import agent_pid
from bundlerun.launcher.run_folder.holder import (
    TORCHRUN,
    Holder,
    job_of_one_node,
    process_tag,
    this_machine,
)
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.rank.env import RankEnv

_UNNAMED = ("", "none")
"""Names that torchrun gives to a job without a name."""

_WORKER = "python -m bundlerun.workers.train"

log = logging.getLogger(__name__)


def with_run_folder(config: TrainConfig, env: RankEnv, entered_before: str | None) -> TrainConfig:
    """The configuration with a run folder, the same on all ranks and in all attempts of a job.

    Args:
        config: as given.
        env: of this rank.
        entered_before: where an earlier attempt of this agent ran, empty in the first one; None
            where the agent keeps no board, so that nobody knows.

    Raises:
        ConfigError: none is given, and ranks would differ; or a link is, and attempts would.
    """
    if config.run_dir:
        folder = Path(config.run_dir)
        # A link to the latest run leads elsewhere when the next attempt follows it.
        if env.run_id and is_latest(folder):
            if entered_before is None:
                raise ConfigError(
                    f"--run-dir {config.run_dir!r} leads to another run as soon as one begins, and "
                    "torchrun's next attempt would continue there; give the folder itself: "
                    f"--run-dir {entered(folder)}"
                )
            folder = Path(entered_before or folder)
        return replace(config, run_dir=str(entered(folder)))
    if not env.is_launched:
        folder = new_folder()
    elif env.run_id not in _UNNAMED:
        folder = folder_of_job(env.run_id)
    elif env.run_id and _is_one_node(env):
        folder = folder_of_job(f"torchrun-{process_tag(agent_pid())}")
    elif (job := site_job(os.environ)) is not None and not job.may_be_shell:
        folder = folder_of_job(job.folder_name)
    else:
        raise ConfigError(NO_FOLDER)
    return replace(config, run_dir=str(folder))


@contextmanager
def claimed_folder(
    config: TrainConfig, env: RankEnv, terms: Terms | None = None, how: str = _WORKER
) -> Iterator[None]:
    """Holds the run folder, and warns of what has changed since the last start.

    A rank that fails leaves its agent's claim as it is: the next attempt continues with it.

    Args:
        config: of the run.
        env: of this rank.
        terms: what a start is made of; None: what `config` says.
        how: what somebody has started who starts one process by itself.

    Raises:
        ConfigError: another run has the folder, or its run cannot continue with these terms.
        NodeError: it cannot be written.
    """
    if env.is_claimed or env.rank != 0:
        yield
        return
    paths = RunPaths(Path(config.run_dir))
    terms = terms_of(config) if terms is None else terms
    claim = Claim(paths, holder_of_rank(env, how), log.warning)
    with _told_of_nobody(env):
        claim.check()
    # Compared before `keep` replaces the terms of the last start.
    for line in changed_lines(paths, terms):
        log.warning(line)
    with _told_of_nobody(env):  # others may have come meanwhile
        claim.take()
    claim.keep(terms)
    try:
        yield
    except BaseException:
        # Without an agent there is no next attempt that would want it.
        if not env.is_launched:
            claim.release()
        raise
    claim.release()


@contextmanager
def _told_of_nobody(env: RankEnv) -> Iterator[None]:
    """Adds to an error why two processes that were meant to be one job may each be alone."""
    try:
        yield
    except ConfigError as exc:
        if env.is_launched:
            raise
        raise ConfigError(
            f"{exc}; nobody has told this process of others: where both are to be ranks of one "
            "run, start them with bundlerun or torchrun"
        ) from exc


def _is_one_node(env: RankEnv) -> bool:
    return env.local_world_size == env.world_size


def holder_of_rank(env: RankEnv, how: str = _WORKER) -> Holder:
    """Who claims a folder for the job of a rank.

    Args:
        env: of the rank.
        how: what somebody has started who starts one process by itself.
    """
    if not env.is_launched:
        return Holder.of_process(job_of_one_node(), how)
    if env.claimed_job:  # so that a folder may be the one that the agent holds
        return Holder.of_process(env.claimed_job, "a rank of bundlerun", node=env.node_name)
    if not env.run_id:
        job = f"at {env.master_addr}:{env.master_port}"
        if is_loopback(env.master_addr):
            job += f" of {this_machine()}"  # every machine has such an address
        return Holder.of_process(job, "a rank of a launcher", node=env.node_name)
    agent = agent_pid()
    name = env.run_id
    if name in _UNNAMED and _is_one_node(env):
        name = process_tag(agent)  # of several nodes the first rank may move to another agent
    return Holder.of_process(f"torchrun {name}", TORCHRUN, node=env.node_name, pid=agent)
