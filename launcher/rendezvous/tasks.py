"""Tasks of an event loop that are nobody's to wait for; a failure of one does not go unheard."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Keeps them until they are done; the loop's exception handler hears at once of a failure."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Begins one; in the loop's thread."""
        task = asyncio.get_running_loop().create_task(work)
        # The loop holds tasks weakly: one that nobody keeps may vanish while it runs.
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def cancel(self) -> None:
        """Ends all."""
        for task in list(self._tasks):
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            context = {"message": "a task failed", "exception": error, "task": task}
            task.get_loop().call_exception_handler(context)
