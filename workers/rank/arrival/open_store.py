"""The store of a round: the key-value store that torch's ranks meet by, at the first node."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import HashStore, PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from bundlerun.launcher.errors import NodeError
from bundlerun.launcher.options.endpoints import bracketed
from bundlerun.workers.rank.arrival.round_store import OWN_PART, own_part
from bundlerun.workers.rank.env import RankEnv

log = logging.getLogger(__name__)

_STORE_POLL_S = 0.02
NAME_S = 30.0
"""How long the first node's name may have no address, seconds."""
_NAME_POLL_S = 0.5


def open_store(env: RankEnv, timeout_s: float) -> Store:
    """The store of this round; a private one when this is the only process.

    Raises:
        NodeError: the first node's store did not answer in time, or has no address.
    """
    if not env.is_launched:
        return HashStore()
    wait_for_name(env.master_addr, min(timeout_s, NAME_S))
    timeout = timedelta(seconds=timeout_s)
    # Rank 0 makes it, in the call below or its agent before.
    if env.rank != 0:
        _wait_for_store(env, timeout_s)
    try:
        # torch lists the iterator's element untyped.
        where = f"tcp://{bracketed(env.master_addr)}:{env.master_port}"
        store: Store = next(rendezvous(where, env.rank, env.world_size, timeout=timeout))[0]
    except (RuntimeError, ValueError) as exc:
        raise NodeError(
            f"the first node's store at {env.master_addr}:{env.master_port} cannot be reached "
            f"({exc}); is the address right and open between the nodes?"
        ) from exc
    store.set_timeout(timeout)
    return own_part(store, env, timeout_s)


def reach_store(env: RankEnv, timeout_s: float) -> Store:
    """The store of a round that an agent of our rendezvous keeps; of another than the own one, too.

    torch takes an agent's store for one only where this process was started with its address.

    Raises:
        RuntimeError: it does not answer in time.
    """
    store = TCPStore(
        env.master_addr,
        env.master_port,
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=timeout_s),
    )
    return PrefixStore(OWN_PART, store)


def wait_for_name(
    name: str, limit_s: float, *, resolve: Callable[..., object] = socket.getaddrinfo
) -> None:
    """Returns once the first node's name has an address: a cluster's name server may be late.

    torch would try for the whole time that a collective may take, and say nothing.

    Raises:
        NodeError: it has none within the limit.
    """
    deadline, has_said = time.monotonic() + limit_s, False
    while True:
        try:
            resolve(name, None)
            return
        except (OSError, UnicodeError) as exc:
            reason = getattr(exc, "strerror", None) or exc
            if time.monotonic() >= deadline:
                raise NodeError(
                    f"MASTER_ADDR {name!r} cannot be resolved: {reason}; set it to an address of "
                    "the first node"
                ) from exc
        if not has_said:
            log.warning("waiting up to %g s for an address of MASTER_ADDR %r", limit_s, name)
        has_said = True
        time.sleep(min(_NAME_POLL_S, limit_s))


def _wait_for_store(env: RankEnv, timeout_s: float) -> None:
    """Returns once the first rank's store answers, or the time is up.

    torch waits half a second and more before it tries a second time.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        # A bare connection: whoever tries it too early is refused at once.
        try:
            with socket.create_connection((env.master_addr, env.master_port), timeout=timeout_s):
                return
        except ConnectionRefusedError:
            time.sleep(_STORE_POLL_S)
        except OSError:
            return  # torch says what is wrong
