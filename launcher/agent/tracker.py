"""Python's resource tracker may be killed (by a person, or as memory was short): no harm is done.

It removes what this process made in /dev/shm, should this process be killed. Python starts another
where it is gone, with a warning, and tells that one to forget what only the first one knew: a
traceback each, on the console. The next agent clears up, too (`ranks.leftovers`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from multiprocessing import resource_tracker
from typing import Any

# The standard library's type stubs leave these out.
_module: Any = resource_tracker


def outlive_tracker() -> None:
    """Makes the tracker's death harmless; once per process, before it makes a semaphore."""
    warnings.filterwarnings("ignore", "resource_tracker: process died", UserWarning)
    known: dict[tuple[str, str], object] = {}
    _module.register = _registering(_module.register, known)
    _module.unregister = _unregistering(_module.unregister, known)


def _registering(
    register: Callable[[str, str], None], known: dict[tuple[str, str], object]
) -> Callable[[str, str], None]:
    def remember(name: str, kind: str) -> None:
        register(name, kind)
        # After the call, which starts a tracker where there is none.
        known[name, kind] = _tracker()

    return remember


def _unregistering(
    unregister: Callable[[str, str], None], known: dict[tuple[str, str], object]
) -> Callable[[str, str], None]:
    def forget(name: str, kind: str) -> None:
        told = known.pop((name, kind), None)
        # One that was never told of it would print a traceback.
        if told is not None and told == _tracker():
            unregister(name, kind)

    return forget


def _tracker() -> object:
    """What tells one tracker from another; None where it is dead. A forked process has no id."""
    tracker = _module._resource_tracker
    is_alive = tracker._fd is not None and tracker._check_alive()
    return (tracker._fd, tracker._pid) if is_alive else None
