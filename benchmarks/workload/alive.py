"""Bytes of tensors that are alive, looked at after each operation.

    operation   |conv|relu|conv|    after each: all tensors seen so far that are still there

Counted is each storage once, as tensors share them, wherever it was allocated, and whoever lets go
of it. What an operation takes and gives back within itself is not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Alive(TorchDispatchMode):
    """Counts while it is entered, which may be several times."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak_bytes = 0
        self._left_out: dict[int, StorageWeakRef] = {}
        self._seen: dict[int, tuple[StorageWeakRef, int]] = {}
        self._seen_bytes = 0

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """From here on the memory of `tensors` does not count; the peak begins again."""
        for tensor in tensors:
            self._left_out[_key(tensor)] = StorageWeakRef(tensor.untyped_storage())
            self._seen.pop(_key(tensor), None)
        self.peak_bytes = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 (what the operation gives)
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        # Whoever is gone matters only where all that were seen are more than the peak so far.
        if self._seen_bytes > self.peak_bytes:
            self._seen = {k: found for k, found in self._seen.items() if not found[0].expired()}
            self._seen_bytes = sum(size for _, size in self._seen.values())
            self.peak_bytes = max(self.peak_bytes, self._seen_bytes)
        return result

    def _see(self, tensor: Tensor) -> None:
        key = _key(tensor)
        storage = tensor.untyped_storage()
        # What has no numbers takes no memory.
        if storage.device.type != "meta" and key not in self._left_out and key not in self._seen:
            self._seen[key] = StorageWeakRef(storage), storage.nbytes()
            self._seen_bytes += storage.nbytes()


def _key(tensor: Tensor) -> int:
    # Of the storage itself: no other one has it before all references to it are gone.
    return int(tensor.untyped_storage()._cdata)
