"""A job that ends with its test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.unit.launcher.rendezvous.jobs import Job


@pytest.fixture
def job() -> Iterator[Job]:
    made = Job()
    yield made
    for handler in made.handlers:
        with suppress(Exception):
            handler.shutdown()
    made.pool.shutdown(wait=False, cancel_futures=True)
