"""Starts the workers of a plan under torch's elastic agent, forked from a loaded process."""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, MutableMapping
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundlerun.launcher.agent.endpoint import is_store, keeps_endpoint, meet_by_torch
from bundlerun.launcher.agent.entry import run_worker
from bundlerun.launcher.agent.failure import explain, explain_end
from bundlerun.launcher.agent.gpus import check_gpus
from bundlerun.launcher.agent.kept_report import kept_report
from bundlerun.launcher.agent.limits import check_shared_memory, raise_open_files
from bundlerun.launcher.agent.tracker import outlive_tracker
from bundlerun.launcher.agreement.agreed import PROSPECTS_VARIABLE, TERMS_VARIABLE
from bundlerun.launcher.agreement.claim import CLAIM_VARIABLE, Claim
from bundlerun.launcher.agreement.options import keep_options
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_RESUMABLE,
    ConfigError,
    NodeError,
    meaning_of,
)
from bundlerun.launcher.layout.hardware import THREADS_VARIABLE
from bundlerun.launcher.options.backend import BUNDLE, Keeps
from bundlerun.launcher.options.declared import ENV_PREFIX
from bundlerun.launcher.options.endpoints import text_of_endpoints
from bundlerun.launcher.plan import LaunchPlan, NodePlan
from bundlerun.launcher.ranks.board import BOARD_VARIABLE, Board
from bundlerun.launcher.ranks.fork_server import (
    can_keep_standbys,
    kill_fork_server,
    start_fork_server,
)
from bundlerun.launcher.ranks.leftovers import mark_own, quiet_tracker, sweep
from bundlerun.launcher.ranks.signals import (
    LEFT_TO_TORCH,
    NOT_HEARD,
    StopSignals,
    exit_now,
    leave_agent,
)
from bundlerun.launcher.ranks.standby import Standbys
from bundlerun.launcher.rendezvous.door import get_handler
from bundlerun.launcher.rendezvous.settings import TOKEN_VARIABLE
from bundlerun.launcher.rendezvous.token import ensure_token
from bundlerun.launcher.run_folder.outcome import Outcome, read_outcome
from bundlerun.launcher.run_folder.paths import RunPaths

if TYPE_CHECKING:
    from torch.distributed.launcher.api import LaunchConfig

PRELOAD = ("torch", "torchvision")
AGENT_LOG = "agent.log"
_PARALLEL_START = "TORCH_MP_PARALLEL_START"
"""Has torch start the processes of a node from several threads, in no order."""


def launch(plan: LaunchPlan, *, say: Callable[[str], None], claim: Claim | None = None) -> int:
    """Runs this node's part of `plan` and returns the exit code.

    Args:
        say: is told what the user should know.
        claim: on the run folder, which is free as far as one can see; None: not claimed here.

    Raises:
        BundleError: this node or its configuration is not fit; no worker has started.
    """
    # First: a signal is written on the board from the moment that one is heard.
    board = Board.create()
    os.environ[BOARD_VARIABLE] = board.where
    terms = dict(plan.terms)
    os.environ[TERMS_VARIABLE] = json.dumps(terms)
    os.environ[PROSPECTS_VARIABLE] = plan.prospects.to_text()
    if claim is not None:
        os.environ[CLAIM_VARIABLE] = claim.job
    node, launch_options = plan.here, plan.launch.value
    with StopSignals(board, exit_now) as signals:
        if not signals.is_heard:
            say(NOT_HEARD)
        try:
            with claim.take() if claim else nullcontext():  # early: a request to stop is ours now
                keeps_store = _prepare(plan, say)
                if claim is not None:
                    claim.keep(terms)  # by a thread, which a process that forks must not have
                    if not plan.script:
                        paths = RunPaths(Path(plan.train.value.run_dir))
                        keep_options(paths, node.name, plan.train, plan.launch)
                keep_agent_log(Path(node.log_dir))
                for line in plan.warnings():
                    say(line)
                if launch_options.backend.keeps is Keeps.STORE:
                    meet_by_torch(plan, say)
                # From here on there may be ranks to end; before, this process could just exit.
                signals.end_by(leave_agent)
                paths = RunPaths(Path(plan.train.value.run_dir))
                with kept_report(paths, claim, every_s=launch_options.report_every):
                    code = _run(plan, Start(keeps_store, board, signals), say)
        finally:
            kill_fork_server()
    if launch_options.max_nodes > 1:
        say(f"node {node.name} ends with exit code {code}: {meaning_of(code)}")
    return code


def _prepare(plan: LaunchPlan, say: Callable[[str], None]) -> bool:
    """Loads what the ranks need, starts their fork server, and checks what can be checked.

    Returns:
        Whether this agent keeps the store of torch's rendezvous.
    """
    node = plan.here
    set_environment(os.environ, node)
    os.environ[THREADS_VARIABLE] = "1"  # this process must have no threads when it forks
    sweep()
    quiet_tracker(os.environ)
    outlive_tracker()
    check_shared_memory(node.num_procs)
    few_files = raise_open_files()
    if few_files:
        say(few_files)
    own_folder = mark_own()
    # Looking at the endpoint takes torch alone, and may refuse before the rest is loaded.
    load("torch")
    keeps_store = keeps_endpoint(plan)
    load(*PRELOAD, plan.module, "torch.distributed.launcher.api")
    # A fork has the calling thread only: locks that others held would stay locked in it.
    start_fork_server((*PRELOAD, plan.module), _standbys(plan))
    os.environ[THREADS_VARIABLE] = node.environment[THREADS_VARIABLE]
    if own_folder is not None:
        tempfile.tempdir = str(own_folder)  # torch's agent leaves files there; the ranks do not
    launch_options = plan.launch.value
    is_cpu_asked = launch_options.devices == "cpu" or launch_options.slots > 0
    passed_over = check_gpus(node, is_cpu_asked=is_cpu_asked)
    if passed_over:
        say(passed_over)
    check = getattr(importlib.import_module(plan.module), "preflight", None)
    if check:
        check(plan.train.value)
    return keeps_store


def _standbys(plan: LaunchPlan) -> Standbys | None:
    """What the fork server is to keep; None without --standby.

    Raises:
        NodeError: this Python's fork server cannot.
    """
    if not plan.launch.value.standby:
        return None
    if not can_keep_standbys():
        version = ".".join(map(str, sys.version_info[:2]))
        raise NodeError(
            f"--standby is not there yet for Python {version}; use 3.13, or leave it out"
        )
    # The fork server takes the n-th request for local rank n.
    os.environ[_PARALLEL_START] = "0"
    return Standbys(
        module=plan.module,
        argv=plan.argv,
        num_ranks=plan.here.num_procs,
        board=os.environ[BOARD_VARIABLE],
    )


def load(*modules: str) -> None:
    """Imports `modules`, which are to stay for good, and tells the garbage collector so.

    Importing torch and torchvision takes 2.2 s without a collector that looks on, 2.7 s with it
    (measured). Later collections skip frozen objects, so forks keep sharing their pages, and the
    agent exits in 0.3 s instead of 1.6 s.
    """
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        gc.freeze()
        gc.enable()


@dataclass(frozen=True, slots=True)
class Start:
    """What the agent is started with.

    keeps_store: this agent keeps the store of torch's rendezvous.
    """

    keeps_store: bool
    board: Board
    signals: StopSignals


def _run(plan: LaunchPlan, start: Start, say: Callable[[str], None]) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import (
        RendezvousClosedError,
        RendezvousConnectionError,
        RendezvousError,
    )

    from bundlerun.launcher.rendezvous.handler import NodeLeftOut, NodesDiffer

    node = plan.here
    try:
        try:
            _start_agent(plan, start)
        except RendezvousConnectionError:
            # Two agents of this machine found the port free; the other one was quicker.
            first = node.meeting.first
            is_torchs = start.keeps_store and plan.launch.value.backend.keeps is Keeps.STORE
            if not is_torchs or not is_store(first.host, first.port):
                raise
            _start_agent(plan, replace(start, keeps_store=False))
    except ChildFailedError as exc:
        text, code = explain(
            exc,
            node_name=node.name,
            num_procs=node.num_procs,
            run_dir=plan.train.value.run_dir,
        )
        say(f"{text}; logs: {node.log_dir}")
        return code
    except SignalException as exc:
        number = start.signals.ended_by or exc.sigval
        say(f"stopped by {number.name}")
        return 128 + number
    except SystemExit as exc:  # the handler's, of a node without a round
        return code_without_round(exc, read_outcome(RunPaths(Path(plan.train.value.run_dir))))
    except NodeLeftOut as exc:
        raise NodeError(f"node {node.name} takes no part in this run any more: {exc}") from exc
    except NodesDiffer as exc:
        raise ConfigError(str(exc)) from exc
    except RendezvousClosedError as exc:
        paths = RunPaths(Path(plan.train.value.run_dir))
        shows_ranks = not plan.launch.value.redirects
        outcome = read_outcome(paths)
        text, code = explain_end(str(exc), outcome, node_name=node.name, shows_ranks=shows_ranks)
        say(f"{text}; logs: {node.log_dir}")
        return code
    except RendezvousError as exc:
        where = text_of_endpoints(node.meeting.endpoints)
        raise NodeError(
            f"the nodes did not meet at {where}: {exc}; see {node.log_dir}/{AGENT_LOG}"
        ) from exc
    codes = {row.exit_code for _, row in start.board.rows()}
    return next((code for code in (EXIT_RESUMABLE, EXIT_FAILED) if code in codes), EXIT_DONE)


def code_without_round(end: SystemExit, outcome: Outcome | None) -> int:
    """What a node ends with that had no round when the run ended: what the run ended with.

    Args:
        end: what the rendezvous says, which knows whether all went well, but not of a stop.
        outcome: what this start of the run has written down; None where this node does not see it.
    """
    code = end.code if isinstance(end.code, int) else EXIT_DONE
    return outcome.exit_code if code == EXIT_DONE and outcome is not None else code


def _start_agent(plan: LaunchPlan, start: Start) -> None:
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry
    from torch.distributed.launcher.api import elastic_launch

    # torch finds it as an entry point too, but not in an installation older than that.
    rendezvous_handler_registry.register(BUNDLE.name, get_handler())
    launch = plan.launch.value
    keep_log = not (launch.redirects or launch.tee)
    elastic_launch(launch_config(plan, start.keeps_store), run_worker)(
        plan.module, plan.argv, os.getpid(), keep_log
    )


def set_environment(environ: MutableMapping[str, str], node: NodePlan) -> None:
    """Sets what the agent and the workers need.

    The workers get the whole configuration as options; a variable that lost against an option
    here must not win there.
    """
    for option in fields(TrainConfig):
        environ.pop(ENV_PREFIX + option.name.upper(), None)
    environ.update(node.environment)


def launch_config(plan: LaunchPlan, keeps_store: bool) -> LaunchConfig:
    """The plan in torch's words.

    Args:
        keeps_store: this agent keeps the rendezvous store.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
    from torch.distributed.launcher.api import LaunchConfig

    launch, node = plan.launch.value, plan.here
    # Later ones win: ours, then what the user gave, then what the backend must have.
    settings: dict[str, Any] = {
        **(bundle_settings(plan) if launch.backend is BUNDLE else {}),
        **launch.rdzv_settings,
        **launch.backend.settings(node_rank=launch.node_rank, keeps_endpoint=keeps_store),
    }
    logs = DefaultLogsSpecs(
        log_dir=node.log_dir,
        redirects=Std.from_str(launch.redirects or "0"),
        tee=Std.from_str(launch.tee or "0"),
    )
    return LaunchConfig(
        min_nodes=launch.min_nodes,
        max_nodes=launch.max_nodes,
        nproc_per_node=node.num_procs,
        run_id=launch.rdzv_id,
        role="worker",
        rdzv_backend=launch.rdzv_backend,
        rdzv_endpoint=text_of_endpoints(node.meeting.endpoints),
        rdzv_configs=settings,
        max_restarts=launch.num_restarts,
        monitor_interval=launch.monitor_interval,
        start_method="forkserver",
        signals_to_handle=LEFT_TO_TORCH,
        local_addr=node.meeting.local_addr,
        logs_specs=logs,
    )


def bundle_settings(plan: LaunchPlan) -> dict[str, Any]:
    """What our rendezvous is told in addition to `--rdzv-conf`, which wins."""
    paths = RunPaths(Path(plan.train.value.run_dir).absolute())
    shape = plan.train.value.shape
    has_token = TOKEN_VARIABLE in os.environ or "token_file" in plan.launch.value.rdzv_settings
    return {
        "node_name": plan.here.name,
        "num_workers": plan.here.num_procs,
        "bundle_size": shape.size,
        "other_sizes": "|".join(str(one.size) for one in shape.family[1:]),
        "rates": plan.prospects.rates_text(shape),
        "fence_dir": str(paths.fence),
        "events_dir": str(paths.events),
        "left_out_dir": str(paths.left_out),
        "give_up_after": plan.launch.value.give_up_after,
        "terms": os.environ[TERMS_VARIABLE],
        "token_file": "" if has_token else ensure_token(paths),
    }


def keep_agent_log(log_dir: Path) -> None:
    """Sends what torch's agent says to a file; the console gets the story in plain words.

    Raises:
        NodeError: the folder cannot be made.
    """
    try:
        log_dir.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(log_dir / AGENT_LOG, encoding="utf-8")
    except OSError as exc:
        raise NodeError(
            f"cannot write to {str(log_dir)!r}: {exc.strerror}; give another --run-dir"
        ) from exc
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
