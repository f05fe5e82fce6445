"""Random numbers of the device: each draw has a seed of its own, fixed when it is asked for.

So the numbers do not depend on when a stream comes to it. They are no GPU's and not the CPU's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_MANY = 1 << 62


def draws(op: Any) -> bool:
    """Whether an operation takes random numbers."""
    return torch.Tag.nondeterministic_seeded in op.tags


class Generator:
    """Where the device's random numbers come from."""

    def __init__(self) -> None:
        self._state = (0, 0)
        self._lock = threading.Lock()

    def manual_seed(self, seed: int) -> None:
        """Begins anew."""
        self._state = (seed % _MANY, 0)

    def get_state(self) -> Tensor:
        """The state, as bytes."""
        return torch.tensor(self._state, dtype=torch.int64).view(torch.uint8)

    def set_state(self, state: Tensor) -> None:
        """Goes back to a state."""
        seed, count = state.view(torch.int64).tolist()
        self._state = (seed, count)

    def _next(self) -> int:
        with self._lock:
            seed, count = self._state
            self._state = (seed, count + 1)
        return hash((seed, count)) % _MANY

    def bound(self, op: Any, kwargs: dict[str, Any]) -> Callable[..., Any]:
        """An operation with the numbers that it will draw.

        Args:
            op: it.
            kwargs: its named arguments; a generator of the CPU is not the device's.
        """
        seed = self._next()
        if any(a.name == "generator" for a in op._schema.arguments):
            kwargs.pop("generator", None)
            return lambda *args, **given: op(
                *args, **given, generator=torch.Generator().manual_seed(seed)
            )

        if op is torch.ops.aten.native_dropout.default:
            # Not by the CPU's own generator, which another thread may seed meanwhile.
            return lambda given, p, train: _dropped(given, p, torch.Generator().manual_seed(seed))

        def act(*args: Any, **given: Any) -> Any:
            # It draws from the CPU's own generator only.
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)
                return op(*args, **given)

        return act


def _dropped(given: Tensor, p: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What `native_dropout` gives in training, and its mask."""
    mask = torch.empty_like(given, dtype=torch.bool).bernoulli_(1 - p, generator=generator)
    return given * mask * (1 / (1 - p) if p < 1 else 0.0), mask
