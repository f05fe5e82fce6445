"""The legs of a sync as threads: each takes buckets in one order and passes them on (I6).

    collect      |b0|b1|b2|
    exchange        |--b0--|--b1--|--b2--|
    distribute             |b0|    |b1|  |b2|

A leg begins a bucket before it has finished the one before, so that the wire never waits for a
thread to wake up.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from bundlerun.launcher.ranks.fault import PeerGoneError
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.rank.meters import Meters, Phase
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.short.owed import Owed

Finish = Callable[[], object]
_BEGUN_AHEAD = 2
"""Buckets that one leg has under way."""


class Shortening(Protocol):
    """Sends less than there is, and makes up for it in the next steps; see `Rounding`."""

    def kept(self, bucket: Bucket) -> Sequence[Owed]:
        """What was lost of a bucket so far, by parameter; not copied."""
        ...

    def take_up(self, bucket: Bucket, part: Owed) -> None:
        """Continues from what `kept` gave; before the first step."""
        ...

    def drop(self) -> None:
        """Forgets what was lost so far."""
        ...


class Action(Protocol):
    """What one leg does to each bucket."""

    phase: Phase

    @property
    def rounding(self) -> Shortening | None:
        """Makes what it sends shorter; None: all travels as it is."""
        ...

    def begin(self, bucket: Bucket) -> Finish:
        """Starts, and gives a function that ends it; at most two are under way, ended in order."""
        ...


class _Joined:
    """Several legs as one: in the order of the legs, on one stream."""

    rounding = None

    def __init__(self, actions: Sequence[Action]) -> None:
        self.phase: Phase = actions[-1].phase
        self._actions = actions

    def begin(self, bucket: Bucket) -> Finish:
        # Ended at once: on a GPU that holds the stream back, not this thread.
        for action in self._actions:
            action.begin(bucket)()
        return _nothing


def _nothing() -> None:
    """What is left to do where each leg has been finished."""


Box = queue.SimpleQueue["Bucket | Exception | None"]


class Leg(threading.Thread):
    """One leg of a chain.

    Args:
        action: what it does.
        device: where the gradients are.
        meters: gets the time of the leg.
        outbox: gets each bucket when this leg is done with it.
        failures: gets what went wrong, which ends the leg.
        is_first: whether buckets come from the backward, and are not yet on the wire.
        is_last: whether they go to the optimizer, which wants them where gradients are.
    """

    def __init__(
        self,
        action: Action,
        device: torch.device,
        meters: Meters,
        *,
        outbox: Box,
        failures: Box,
        is_first: bool,
        is_last: bool,
    ) -> None:
        super().__init__(name=f"sync-{action.phase}", daemon=True)
        self.inbox: Box = queue.SimpleQueue()
        self._outbox = outbox
        self._failures = failures
        self._is_first = is_first
        self._is_last = is_last
        self._action = action
        self._meters = meters
        self._device = device
        self._begun: deque[tuple[Bucket, Finish]] = deque()

    def run(self) -> None:
        """Works until the end, or until something goes wrong."""
        door.enter(self._device)
        with door.on_stream(self._device, self._action.phase):
            try:
                while self._work():
                    pass
            except Exception as exc:  # handed to the thread that waits for the sums
                self._failures.put(exc)

    def _work(self) -> bool:
        """Begins or finishes one bucket; False at the end."""
        # Begin another one if it is there already; else there is nothing better to do than to wait.
        if self._begun and (len(self._begun) == _BEGUN_AHEAD or self.inbox.empty()):
            self._finish_oldest()
            return True
        bucket = self.inbox.get()
        if not isinstance(bucket, Bucket):
            while self._begun:
                self._finish_oldest()
            return False
        with self._meters.phase(self._action.phase):
            # On a GPU the leg before has ended for its own stream only.
            bucket.wait_ready()
            if self._is_first:
                bucket.load_wire()
            self._begun.append((bucket, self._action.begin(bucket)))
        return True

    def _finish_oldest(self) -> None:
        bucket, finish = self._begun.popleft()
        with self._meters.phase(self._action.phase):
            finish()
            if self._is_last:
                bucket.unload_wire()
            bucket.mark_ready()
        self._outbox.put(bucket)


class Chain:
    """The legs of one scheme on one rank, one after the other.

    Args:
        actions: of the legs, in order; one at least.
        device: where the gradients are.
        timeout_s: longest wait for one bucket in one leg, seconds.
        meters: gets the time of each leg.
        in_one_thread: whether all legs of a bucket are begun by one thread, one after the other.
            NCCL wants the operations of all communicators in one order on all ranks, and a thread
            for each leg would gain nothing, as none of them waits.
    """

    def __init__(
        self,
        actions: Sequence[Action],
        device: torch.device,
        timeout_s: float,
        meters: Meters,
        *,
        in_one_thread: bool = False,
    ) -> None:
        self.roundings: Mapping[Phase, Shortening] = {
            action.phase: action.rounding for action in actions if action.rounding is not None
        }
        """What is sent in a shorter form, by leg."""
        if in_one_thread:
            actions = [_Joined(actions)]
        self._done: Box = queue.SimpleQueue()
        self._timeout_s = timeout_s
        self._legs: list[Leg] = []
        for action in reversed(actions):  # each puts its buckets into the box of the next
            leg = Leg(
                action,
                device,
                meters,
                outbox=self._legs[0].inbox if self._legs else self._done,
                failures=self._done,
                is_first=action is actions[0],
                is_last=not self._legs,
            )
            self._legs.insert(0, leg)
        for leg in self._legs:
            leg.start()

    def launch(self, bucket: Bucket) -> None:
        """Sends a bucket on its way; all replicas launch theirs in one order."""
        self._legs[0].inbox.put(bucket)

    @property
    def num_waiting(self) -> int:
        """Buckets whose sums are there, and that nobody has taken."""
        return self._done.qsize()

    def take(self) -> Bucket:
        """Waits for the next bucket whose sum is there.

        Raises:
            PeerGoneError: another rank did not answer in time, or died.
        """
        # A bucket may take that long in each leg.
        try:
            done = self._done.get(timeout=self._timeout_s * len(self._legs))
        except queue.Empty:
            raise PeerGoneError(f"no sum within {self._timeout_s} s; a rank is gone") from None
        if isinstance(done, Exception):
            raise PeerGoneError("the sync was cut off; another rank is gone") from done
        assert done is not None
        return done

    def close(self) -> None:
        """Tells the threads to end, after what they have begun; does not wait for that."""
        for leg in self._legs:
            leg.inbox.put(None)
