"""A thread that waits in the place of a rank, for one link."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from bundlerun.workers.device import accelerator as door

T = TypeVar("T")


class Helper:
    """Does things one after the other, in the order they were added.

    Once one has failed, all later ones fail with the same error without being tried. The thread
    starts with the first of them. Unlike an executor's, it does not keep the process alive.

    Args:
        name: of the thread.
        device: what CUDA calls in the thread refer to.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        self._name = name
        self._device = device
        self._inbox: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def add(self, act: Callable[[], T]) -> Future[T]:
        """Has `act` called in the thread; the answer holds what it returns or raises."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[T] = Future()
        self._inbox.put((future, act))
        return future

    def _run(self) -> None:
        door.enter(self._device)
        failure: Exception | None = None
        while True:
            future, act = self._inbox.get()
            # A message sent after a lost one would be received in its place.
            if failure is None:
                failure = _answer(future, act)
            else:
                future.set_exception(failure)
            del future, act  # and the tensors they hold


def _answer(future: Future[Any], act: Callable[[], Any]) -> Exception | None:
    try:
        future.set_result(act())
    except Exception as exc:  # handed to whoever waits for the answer
        future.set_exception(exc)
        return exc
    return None
