"""A job whose nodes are handlers of this process, at addresses of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousInfo, RendezvousParameters

from bundlerun.launcher.rendezvous.door import get_handler
from bundlerun.launcher.rendezvous.handler import BundleRendezvousHandler

LIMIT_S = 30.0


CONSOLE = "bundlerun.launcher.console"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """Nodes 127.0.0.1, ...: each with its handler; calls that block run in threads."""

    def __init__(self, nodes: tuple[int, int] = (1, 2), **conf: object) -> None:
        self.port, self.second_port = free_port(), free_port()
        self.ends = f"127.0.0.1:{self.port}"
        self.nodes = nodes
        self.conf = {"num_workers": 2, "heartbeat": 0.1} | conf
        self.handlers: list[BundleRendezvousHandler] = []
        self.pool = ThreadPoolExecutor(8)

    def start(self, index: int, run_id: str = "job", **conf: object) -> BundleRendezvousHandler:
        config = self.conf | {"node_name": f"n{index}"} | conf
        params = RendezvousParameters(
            "bundle",
            self.ends,
            run_id,
            *self.nodes,
            **{"local_addr": f"127.0.0.{index}"} | config,
        )
        handler = get_handler()(params)
        assert isinstance(handler, BundleRendezvousHandler)
        self.handlers.append(handler)
        return handler

    def call(self, work: Callable[[], RendezvousInfo]) -> Future[RendezvousInfo]:
        return self.pool.submit(work)

    def meet(self, *handlers: BundleRendezvousHandler) -> list[RendezvousInfo]:
        calls = [self.call(handler.next_rendezvous) for handler in handlers]
        return [call.result(LIMIT_S) for call in calls]


def worker_failed() -> ChildFailedError:
    """What torch's launcher raises once an agent has no attempt left."""
    return ChildFailedError("worker", {0: ProcessFailure(0, 1, 1, "")})
