"""`bundlerun` with a clock at each stage of its start.

    python -m benchmarks.workload.traced run OPTION... DATA

Appends {"time", "pid", "name", "seconds"} per traced call to the file that $BENCHMARK_TRACE names.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

from bundlerun.launcher import cli

VARIABLE = "BENCHMARK_TRACE"
IN_LAUNCHER = (
    ("bundlerun.launcher.commands.run", "read_configs"),
    ("bundlerun.launcher.commands.run", "resolve_meeting"),
    ("bundlerun.launcher.commands.run", "make_plan"),
    ("bundlerun.launcher.commands.run", "check_torch"),
)
IN_ELASTIC = (
    ("bundlerun.launcher.agent.endpoint", "check_port"),
    ("bundlerun.launcher.agent.elastic", "start_fork_server"),
    ("bundlerun.launcher.agent.endpoint", "wait_for_meeting"),
    ("bundlerun.launcher.agent.elastic", "_run"),
)
AFTER_IMPORT = (
    ("bundlerun.workers.train", "preflight"),
    ("torch.distributed.elastic.rendezvous.dynamic_rendezvous:DynamicRendezvousHandler",
     "next_rendezvous"),
    ("torch.distributed.elastic.agent.server.api:SimpleElasticAgent", "_assign_worker_ranks"),
    ("torch.distributed.elastic.agent.server.api:SimpleElasticAgent", "_exit_barrier"),
    ("torch.distributed.elastic.agent.server.local_elastic_agent:LocalElasticAgent",
     "_start_workers"),
    ("bundlerun.workers.train", "main"),
    ("bundlerun.workers.run.start", "load_recipe"),
    ("bundlerun.workers.train", "open_store"),
    ("bundlerun.workers.rank.arrival.session", "_meet"),
    ("bundlerun.workers.rank.arrival.session", "make_groups"),
    ("bundlerun.workers.train", "join"),
    ("bundlerun.workers.run.start", "open_data"),
    ("bundlerun.workers.run.start", "cut_model"),
    ("bundlerun.workers.trainer:Trainer", "__init__"),
    ("bundlerun.workers.trainer:Trainer", "copy_from_first"),
    ("bundlerun.workers.trainer:Trainer", "step"),
    ("bundlerun.workers.run.keeper:Keeper", "resume"),
    ("bundlerun.workers.run.keeper:Keeper", "save"),
)  # fmt: skip


def trace(place: str, name: str) -> None:
    """Times every call of a function or method from now on."""
    module, _, owner_name = place.partition(":")
    owner: Any = import_module(module)
    owner = getattr(owner, owner_name) if owner_name else owner
    setattr(owner, name, timed(getattr(owner, name), f"{owner_name or module}.{name}"))


def timed(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    """`call` with a line in the trace when it returns."""

    @functools.wraps(call)
    def run(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        start = time.time()
        try:
            return call(*args, **kwargs)
        finally:
            write(name, start)

    return run


def write(name: str, start: float) -> None:
    """Appends a line; one write, so lines of several processes do not mix."""
    line = {"time": start, "pid": os.getpid(), "name": name, "seconds": time.time() - start}
    descriptor = os.open(os.environ[VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, (json.dumps(line) + "\n").encode())
    os.close(descriptor)


def main() -> int:
    """Runs bundlerun, traced."""
    write("main", time.time())
    for place, name in IN_LAUNCHER:
        trace(place, name)
    import_elastic()
    return cli.main()


def import_elastic() -> None:
    """Traces the launcher's imports, and hooks what can be hooked only after them."""
    elastic: Any = import_module("bundlerun.launcher.agent.elastic")
    for place, name in IN_ELASTIC:
        trace(place, name)
    # What ranks do is hooked just before the fork server starts, so that its forks have it.
    fork = elastic.start_fork_server

    def start_fork_server(*args: Any) -> Any:  # noqa: ANN401
        for place, name in AFTER_IMPORT:
            trace(place, name)
        return fork(*args)

    def import_timed(name: str) -> Any:  # noqa: ANN401
        start = time.time()
        module = import_module(name)
        # Imports that are there already take no time, and would only fill the trace.
        if time.time() - start > 0.01:
            write(f"import {name}", start)
        return module

    elastic.start_fork_server = start_fork_server
    elastic.importlib = SimpleNamespace(import_module=import_timed)


if __name__ == "__main__":
    sys.exit(main())
