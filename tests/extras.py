"""Packages that a test needs and that may be missing."""

from __future__ import annotations

from importlib.util import find_spec

import pytest


def need(package: str, reason: str) -> None:
    """Skips the tests of a module without the package; the import is theirs: all workers collect.

    `pytest.importorskip` imports it in each worker: transformers, for peft, takes seconds.
    """
    if find_spec(package) is None:
        pytest.skip(reason, allow_module_level=True)
