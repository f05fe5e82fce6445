"""The sums of a step that come behind the next forward.

    step s      ... last backward | buckets leave | small sums come | [1] left behind
    step s+1    first forward     | [2] each read of a parameter waits for its bucket; the optimizer
                                  |     changes what has come
                first forward over| [3] settled: the rest has come, the state is that after step s
                backwards ...

The optimizer runs in the thread that trains, so that nobody sees half of a change. Whoever else
reads or writes the state settles first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

import torch
from torch.nn import Parameter

from bundlerun.splits.stage import Forward
from bundlerun.workers.overlap.reads import watched


class Coming(Protocol):
    """Sums that are under way."""

    @property
    def is_under_way(self) -> bool:
        """Whether `take_next` has anything to give."""
        ...

    def take_next(self) -> Sequence[Parameter]:
        """Parameters whose sums have come; waits for some, and may give none."""
        ...

    def release(self, parameters: Sequence[Parameter]) -> None:
        """The optimizer has had their gradients."""
        ...


class Behind:
    """The step that is left behind, if one is.

    Args:
        sums: of each step.
        num_chunks: of the model on this rank.
    """

    def __init__(self, sums: Coming, num_chunks: int = 1) -> None:
        self._sums = sums
        self._num_chunks = num_chunks
        self._change: Callable[[Sequence[Parameter]], None] | None = None
        self._awaited: set[int] = set()
        self._has_run: set[int] = set()
        self._when_settled: list[Callable[[], None]] = []

    @property
    def is_open(self) -> bool:
        """Whether a step is left behind."""
        return self._change is not None

    def leave(
        self, parameters: Collection[Parameter], change: Callable[[Sequence[Parameter]], None]
    ) -> None:
        """[1] Leaves a step behind.

        Args:
            parameters: whose sums are to come.
            change: does what the optimizer is to do to some of them.
        """
        self._awaited = set(map(id, parameters))
        self._change = change
        self._has_run.clear()

    def when_settled(self, act: Callable[[], None]) -> None:
        """Calls `act` once the step is settled; at once, where none is left behind."""
        if self.is_open:
            self._when_settled.append(act)
        else:
            act()

    def around(self, forwards: Sequence[Forward]) -> list[Forward]:
        """[2] The same forwards of the chunks, of which the first ones wait for what they read."""
        return [self._waiting(number, forward) for number, forward in enumerate(forwards)]

    def _waiting(self, number: int, forward: Forward) -> Forward:
        def run(*inputs: Any) -> object:  # noqa: ANN401 (what crosses a cut)
            if not self.is_open:
                return forward(*inputs)
            with watched(self._awaited, self._wait_for):
                result = forward(*inputs)
            self._has_run.add(number)
            # Here, and not with the last bucket: inside a forward norms have lent buffers.
            if not self._awaited or len(self._has_run) == self._num_chunks:
                self.settle()
            return result

        return run

    def _wait_for(self, parameter: object) -> None:
        while id(parameter) in self._awaited:
            self._take()

    def _take(self) -> None:
        assert self._change is not None
        # Neither what is done to the model nor a wait is part of the forward that it happens in.
        with torch.no_grad(), torch._C.DisableTorchFunction():
            come = self._sums.take_next()
            self._awaited.difference_update(map(id, come))
            self._change(come)
            self._sums.release(come)

    def settle(self) -> None:
        """[3] Returns once the state is that after the step.

        Raises:
            PeerGoneError: another rank did not answer in time, or died.
        """
        if not self.is_open:
            return
        while self._sums.is_under_way:
            self._take()
        self._change = None
        acts, self._when_settled = self._when_settled, []
        for act in acts:
            act()
