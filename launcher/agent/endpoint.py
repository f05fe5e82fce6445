"""The endpoint before the agent starts: is it for this agent to keep, does the store answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

from bundlerun.launcher.meeting.network import check_port, wait_for_meeting
from bundlerun.launcher.options.backend import Keeps
from bundlerun.launcher.plan import LaunchPlan
from bundlerun.launcher.rendezvous.probe import is_rendezvous


def keeps_endpoint(plan: LaunchPlan) -> bool:
    """Whether this agent is to keep the endpoint; False too where its backend is unknown to us.

    Raises:
        NodeError: it is to, and cannot listen there.
    """
    launch = plan.launch.value
    if launch.backend.keeps is None:
        return False
    answers = {Keeps.STORE: is_store, Keeps.COORDINATOR: is_rendezvous}[launch.backend.keeps]
    return check_port(plan.here.meeting, is_store=answers if launch.max_nodes > 1 else _nobodys)


def meet_by_torch(plan: LaunchPlan, say: Callable[[str], None]) -> None:
    """Waits for the node that keeps torch's store; how torch's rendezvous waits, nobody sees.

    Raises:
        NodeError: it does not answer, or something else does.
    """
    node, launch = plan.here, plan.launch.value
    wait_for_meeting(node.meeting, is_store=is_store, say=say)
    if launch.max_nodes > 1:
        say(
            f"node {node.name} meets {launch.nnodes} nodes at {node.meeting.first}, by torch's "
            f"rendezvous {launch.rdzv_backend}, which does not say for whom it waits"
        )


def is_store(address: str, port: int, *, wait_s: float = 2.0) -> bool:
    """Whether a rendezvous store answers within `wait_s` seconds.

    torch's client waits without end for the greeting of a listener that says nothing.
    """
    answered = threading.Event()
    threading.Thread(target=_greet, args=(address, port, wait_s, answered), daemon=True).start()
    return answered.wait(wait_s)


def _greet(address: str, port: int, wait_s: float, answered: threading.Event) -> None:
    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=wait_s)
    with suppress(RuntimeError, ValueError):
        TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout)
        answered.set()


def _nobodys(address: str, port: int) -> bool:
    """A job of one node has no other agent that could keep its endpoint."""
    return False
