"""A torchrun-native elastic launcher for bundle-based hybrid parallelism.

Importing this package loads nothing. `launcher`, `workers`, `splits` and `slurm` lie at the top of
the repository and are linked here, so that a checkout and an installation have the same names.

What people's own programs use is here by name, see docs/own_loop.md, and is loaded with its first
use: `from bundlerun import protect`.
"""

import importlib

_DOORS = {
    "Bundle": "bundlerun.workers.own.bundle",
    "Cut": "bundlerun.workers.own.cut",
    "Protection": "bundlerun.workers.own.protection",
    "protect": "bundlerun.workers.own.protect",
}

__all__ = ["Bundle", "Cut", "Protection", "protect"]


def __getattr__(name: str) -> object:
    """A public name, loaded now; types are in the file of stubs beside this one."""
    if name not in _DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS[name]), name)
