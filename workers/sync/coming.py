"""The sums of the step that is sent, as they come.

finish       all of them are waited for
or           the small sums, `take_small`; then parameters whose sums are there, `take_next`, a
bucket at a time, while the next step has begun
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

from torch.nn import Parameter

from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.sync.bucket import Bucket
from bundlerun.workers.sync.legs import Chain


class Coming:
    """What is on its way to one rank.

    Args:
        chain: brings buckets back; None: there is no other replica, and nothing comes.
        last: the bucket that says which parameters nobody has used.
        clear_unused: called when that has come; takes their gradients away.
        meters: gets the time of each wait.
    """

    def __init__(
        self, chain: Chain | None, last: Bucket, clear_unused: Callable[[], None], meters: Meters
    ) -> None:
        self._chain = chain
        self._last = last
        self._clear_unused = clear_unused
        self._meters = meters
        self._num_to_come = 0
        self._early: deque[Bucket] = deque()
        """Those that came while nobody asked for them."""
        self.awaited: set[Parameter] = set()
        """Whose gradients the optimizer is still to have."""
        # Of these: what this rank has not used, so that only the last bucket says whether others
        # have; and those whose own bucket has come before it.
        self._unsure: set[Parameter] = set()
        self._held: list[Parameter] = []

    def sent(self, num_buckets: int) -> None:
        """All buckets of a step have left."""
        self._num_to_come = num_buckets

    def take_all(self) -> None:
        """Waits for all sums of the step."""
        while self._num_to_come:
            self._open_next()

    def take_small(self, parameters: Collection[Parameter], used: Collection[Parameter]) -> None:
        """Waits for the first bucket only.

        Call `take_next` until nothing is under way, and `release` what the optimizer has had,
        before the first backward of the next step.

        Args:
            parameters: all that are summed.
            used: those that this rank has used.
        """
        self._unsure = {p for p in parameters if p not in used}
        self.awaited = set(parameters)
        self._held = self._open_next().parameters

    @property
    def is_under_way(self) -> bool:
        """Whether there is anything for `take_next` to give."""
        return self._num_to_come > 0 or bool(self._held)

    def take_next(self) -> list[Parameter]:
        """Parameters whose sums are there, after a wait for the next bucket if need be; maybe none.

        Raises:
            PeerGoneError: another rank did not answer in time, or died.
        """
        ready = self._sure()
        if not ready:
            bucket = self._open_next()
            self._held = [*self._held, *bucket.parameters]
            if bucket is self._last:
                self._clear_unused()
                self._unsure.clear()
            ready = self._sure()
        self._held = [p for p in self._held if p in self._unsure]
        return ready

    def _sure(self) -> list[Parameter]:
        return [p for p in self._held if p not in self._unsure]

    def take_rest(self) -> None:
        """Waits for all that `take_small` has left; gradients are as after `take_all`."""
        while self.is_under_way:
            self.take_next()
        self.awaited.clear()

    def release(self, parameters: Sequence[Parameter]) -> None:
        """The optimizer has had their gradients, and a next step has begun."""
        for parameter in parameters:
            parameter.grad = None
        self.awaited.difference_update(parameters)

    def let_pass(self) -> None:
        """Takes in all that has left, unseen: what leaves next comes next."""
        while self._num_to_come > len(self._early):
            self._early.append(self._taken())

    def _open_next(self) -> Bucket:
        self._num_to_come -= 1
        bucket = self._early.popleft() if self._early else self._taken()
        bucket.open()
        return bucket

    def _taken(self) -> Bucket:
        assert self._chain is not None
        with self._meters.phase("sync_wait"):
            return self._chain.take()
