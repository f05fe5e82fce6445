"""What the tests of whole runs share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.warm import Warm


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    """Where programs are forked from that need not be started anew."""
    opened = Warm()
    yield opened
    opened.close()
