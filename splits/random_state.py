"""The random numbers of this process: torch's on the CPU, Python's and numpy's."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


def take_random_state() -> Callable[[], None]:
    """Gives what puts the random numbers of this process back to where they are now."""
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy else None

    def put_back() -> None:
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)

    return put_back


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leaves the random numbers of this process as they were: training draws from them, too."""
    put_back = take_random_state()
    try:
        yield
    finally:
        put_back()


def seed_random(seed: int) -> None:
    """Seeds the generators of torch's CPU, Python and numpy."""
    # Not torch.manual_seed: it would seed the GPUs as well, which no transform draws from.
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy:
        numpy.random.seed(seed % 2**32)
