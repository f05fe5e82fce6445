"""What tests of kept state have in common."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def memory_that_shows() -> Iterator[None]:
    """What nobody initialises is NaN: a model that is restored draws no numbers before."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
