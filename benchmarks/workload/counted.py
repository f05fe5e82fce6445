"""Counts the operations that a thread gives to its device, and how often it waits for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest.mock import patch

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

_WAITS = ("_local_scalar_dense", "equal", "nonzero")
"""What a GPU is asked that only its answer can go on from."""


class Counted(TorchDispatchMode):
    """Counts while it is entered; on the CPU, where each operation is seen that a GPU would get.

    Views are no work for a device and do not count; a `_foreach_` operation is one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.num_waits = 0
        self._tolist: Callable[[Tensor], Any] = Tensor.tolist
        # Torch does not dispatch it for tensors of the CPU.
        counted = lambda tensor: self._counted_list(tensor)  # noqa: E731 (a method for tensors)
        self._patched = patch.object(Tensor, "tolist", counted)

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 (torch has no type for it)
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Counts one operation, and does it."""
        name = func.overloadpacket.__name__
        if name in _WAITS:
            self.num_waits += 1
        elif not func.is_view and not name.startswith("_record_function"):
            self.operations[name] += 1
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Counted:
        """Begins to count."""
        self._patched.start()
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:  # noqa: ANN401 (as torch has it)
        """Ends that."""
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patched.stop()

    def _counted_list(self, tensor: Tensor) -> Any:  # noqa: ANN401 (as torch has it)
        if _get_current_dispatch_mode() is self:  # another thread is not counted
            self.num_waits += 1
        return self._tolist(tensor)
