"""The store of one round: a torch store of its own, so that no round meets another's keys."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext, suppress
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import PrefixStore, TCPStore
from torch.distributed import DistStoreError
from torch.distributed.elastic.agent.server.api import _RoleInstanceInfo

from bundlerun.launcher.rendezvous.protocol.messages import Round

_ROLE_INFO = "torchelastic/role_info/"
_ASSIGNED = "torchelastic/assigned_ranks/"
_EXIT_BARRIER = "torchelastic/agent/terminal_state"
_LOOK = timedelta(seconds=1)
_EXIT_LOOK = timedelta(seconds=0.2)
NUMBER_KEY = "rendezvous/round"
"""Where the workers find the round's number, the same for all, unlike torch's restart count."""


def open_store(address: str, timeout: timedelta) -> TCPStore:
    """A store of this process that listens at `address` only, at a port that is free."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # A socket of our own: torch's would listen at all addresses.
    listener = socket.socket(family)
    listener.bind((address, 0))
    listener.listen(4096)
    port = listener.getsockname()[1]
    return TCPStore(
        address,
        port,
        is_master=True,
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
        timeout=timeout,
    )


def reach_store(round_: Round, timeout: timedelta) -> TCPStore:
    """The store that the first node of `round_` keeps.

    Raises:
        RuntimeError: it does not answer in time.
    """
    answer: Future[TCPStore] = Future()

    def reach() -> None:
        try:
            answer.set_result(
                TCPStore(
                    round_.seats[0].address,
                    round_.store_port,
                    is_master=False,
                    wait_for_workers=False,
                    timeout=timeout,
                )
            )
        except RuntimeError as exc:
            answer.set_exception(exc)

    # In a thread, which ends with the connection: where the other process has stopped, its kernel
    # takes the connection, and torch waits for the first answer as long as that lasts.
    threading.Thread(target=reach, name="reach store", daemon=True).start()
    try:
        return answer.result(timeout.total_seconds())
    except TimeoutError as exc:
        address = f"{round_.seats[0].address}, port {round_.store_port}"
        raise RuntimeError(f"{address}, does not answer within {timeout}") from exc


class RoundStore:
    """What torch's agent gets: the store, with the ranks answered from the round itself.

    The agents would tell each other how many workers they have, through the store, and a node that
    dies while they do so would take all agents with it. But the round says how many, save the
    first one under plain torchrun, which does not tell its handler: then they ask each other, and
    an answer that does not come before the round is over is made up.

    Args:
        index: of this node.
        learn: is told how many workers this node has.
        is_over: whether this node has to leave the round.
        finish: is told when all workers of this node have ended well.
        is_ended: whether nobody needs this node any more once it has.
    """

    def __init__(
        self,
        store: TCPStore,
        round_: Round,
        index: int,
        *,
        learn: Callable[[int], None],
        is_over: Callable[[], bool],
        finish: Callable[[], None],
        is_ended: Callable[[], bool],
    ) -> None:
        self._store: Any = PrefixStore("agents", store)  # torch's stubs leave methods out
        self._round = round_
        self._index = index
        self._learn = learn
        self._is_over = is_over
        self._finish = finish
        self._is_ended = is_ended
        self._is_known = all(seat.num_workers for seat in round_.seats)
        self._num_told = len(round_.seats)
        """Nodes of the round that torch's agent was told of."""

    def move(self, store: TCPStore, round_: Round, index: int) -> None:
        """The workers go on in another round; torch's agent is not told."""
        self._store = PrefixStore("agents", store)
        self._round = round_
        self._index = index
        self._is_known = all(seat.num_workers for seat in round_.seats)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 (the store's own methods)
        return getattr(self._store, name)

    def get(self, key: str) -> bytes:
        """The value of `key`; a node's ranks, if need be, without asking anybody."""
        if not key.startswith(_ASSIGNED):
            return bytes(self._store.get(key))
        # A first round under plain torchrun: the agents tell each other.
        if not self._is_known and self._is_there([key]):
            return bytes(self._store.get(key))
        return json.dumps(ranks_of(self._round, int(key[len(_ASSIGNED) :]))).encode()

    def set(self, key: str, value: str) -> None:
        """Sets a value; what the round says itself is not sent."""
        if key == f"{_ROLE_INFO}{self._index}":
            self._learn(int(json.loads(value)["local_world_size"]))
        if not (self._is_known and key.startswith((_ROLE_INFO, _ASSIGNED))):
            # With the store gone the round ends, but this agent must not.
            with suppress(RuntimeError) if key.startswith(_ROLE_INFO) else nullcontext():
                self._store.set(key, value)

    def add(self, key: str, amount: int) -> int:
        """Adds to a counter; torch's agent counts those whose workers have finished."""
        if not key.startswith(_EXIT_BARRIER):
            return int(self._store.add(key, amount))
        self._finish()
        with suppress(RuntimeError):
            return self._as_told(int(self._store.add(key, amount)))
        return 0  # the store's node is gone: `wait` ends with the job

    def _as_told(self, count: int) -> int:
        """Finished nodes, where torch's agent compares with the nodes that it was told of."""
        if count >= len(self._round.seats):
            return self._num_told
        return min(count, self._num_told - 1)

    def wait(self, keys: Sequence[str], timeout: timedelta | None = None) -> None:
        """Waits for `keys`; for the others' end only as long as the job goes on.

        torch waits for 300 s: then it abandons nodes that still work, or has waited in vain for
        those that have come for another round.
        """
        if not all(key.startswith(_EXIT_BARRIER) for key in keys):
            self._store.wait(list(keys), *([timeout] if timeout else []))
            return
        while not self._is_ended():
            try:
                self._store.wait(list(keys), _EXIT_LOOK)
                return
            except DistStoreError:
                continue
            except RuntimeError:
                # The store's node is gone, but not the job: its end is still to come.
                time.sleep(_EXIT_LOOK.total_seconds())

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """The values of `keys`; how many workers nodes have, if need be, without asking them."""
        if not all(key.startswith(_ROLE_INFO) for key in keys):
            return list(self._store.multi_get(list(keys)))
        if not self._is_known and self._is_there(keys):
            return list(self._store.multi_get(list(keys)))
        # The round says it, or is over: then any count will do.
        return [
            _RoleInstanceInfo("", index, seat.num_workers or 1).serialize()
            for index, seat in enumerate(self._round.seats)
        ]

    def multi_set(self, keys: Sequence[str], values: Sequence[str]) -> None:
        """Sets the values of `keys`."""
        if not (self._is_known and all(key.startswith(_ASSIGNED) for key in keys)):
            with suppress(RuntimeError):
                self._store.multi_set(list(keys), list(values))

    def _is_there(self, keys: Sequence[str]) -> bool:
        """Waits for `keys`; False once the round is over or the store is gone."""
        while not self._is_over():
            try:
                self._store.wait(list(keys), _LOOK)
                return True
            except DistStoreError:
                continue
            except RuntimeError:
                return False
        return False


def ranks_of(round_: Round, index: int) -> list[int]:
    """First rank and world size of a node's workers, then the same within their role: one role."""
    counts = [seat.num_workers or 1 for seat in round_.seats]
    first, total = sum(counts[:index]), sum(counts)
    return [first, total, first, total]
