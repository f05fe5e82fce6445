"""What a pass allocates and computes: every operation is seen, and every storage that it makes."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from bundlerun.launcher.planning.profile_request import Peak


@dataclass(slots=True)
class _Storage:
    size: int
    maker: int
    saver: int | None = None
    """The first piece that has saved it for its backward."""


class Ledger(TorchDispatchMode):
    """Follows one pass, see `passes.Listener`; use it around the pass, and `saving` with it.

    Args:
        known: storages of these count for nothing: parameters, buffers, their gradients.
        given: the model's inputs, which the first piece gets.
        peak: of the device by which `now` goes; None: it stands still.
        trained: parameters that have gradients.
    """

    def __init__(
        self,
        known: Iterable[Tensor],
        given: object,
        peak: Peak | None = None,
        trained: Iterable[Tensor] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._peak = peak
        self._piece, self._is_backward = 0, False
        self._known = {t.untyped_storage()._cdata for t in known}
        self._trained = {t.untyped_storage()._cdata for t in trained}
        self._alive: dict[int, _Storage] = {}
        self._live = 0
        self._most: defaultdict[int, int] = defaultdict(int)
        self.operations: defaultdict[int, int] = defaultdict(int)
        """Of each piece, forward and backward."""
        self.kept: dict[int, int] = {}
        """Bytes that each piece has kept for the backward; the loss is the last piece."""
        self.split: defaultdict[int, int] = defaultdict(int)
        """Bytes that operations with trained parameters make in the forward, by piece: as many as
        the gradients that arrive there."""
        self._late: list[tuple[int, int, int]] = []
        self.now = 0.0
        """Seconds that such a device takes up to here."""
        self._note([leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)])

    # --- it follows

    def enters(self, piece: int, *, is_backward: bool) -> None:
        """See `Listener`."""
        self._piece, self._is_backward = piece, is_backward
        self._reach()

    def forward_is_over(self, outputs: Sequence[object]) -> None:
        """See `Listener`."""
        # Of a piece that computes without autograd's help, such as a checkpoint, nothing is saved
        # but what its backward begins with: it is there, and nobody else holds it.
        held = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves(list(outputs))
            if isinstance(leaf, Tensor)
        }
        found: defaultdict[int, int] = defaultdict(int)
        for key, storage in self._alive.items():
            if storage.saver is not None:
                found[storage.saver] += storage.size
            elif key not in held:
                found[storage.maker] += storage.size
        self.kept = dict(found)
        self._late = [
            (storage.maker, storage.saver, storage.size)
            for storage in self._alive.values()
            if storage.saver is not None and storage.saver > storage.maker
        ]

    def late(self, boundary: int) -> int:
        """Bytes that are made before a boundary, and that only pieces behind it have saved."""
        return sum(size for maker, saver, size in self._late if maker <= boundary < saver)

    def peaks(self, count: int) -> list[int]:
        """The most that each piece had at once beside what it and those before it have kept."""
        before, found = 0, []
        for piece in range(count + 1):
            before += self.kept.get(piece, 0)
            found.append(max(0, self._most[piece] - before))
        return found

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Sees what autograd keeps."""
        with saved_tensors_hooks(self._saved, lambda tensor: tensor):
            yield

    def _saved(self, tensor: Tensor) -> Tensor:
        storage = self._alive.get(tensor.untyped_storage()._cdata)
        if storage is not None and storage.saver is None:
            storage.saver = self._piece
        return tensor

    # --- operations

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - an operator
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - any result
        """Does it, and looks at it."""
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self._note(made)
        if self._trained and not self._is_backward and not func.is_view:
            self._note_weights(made, args)
        count = flop_registry.get(getattr(func, "_overloadpacket", None))
        operations = int(count(*args, **(kwargs or {}), out_val=result)) if count else 0
        self.operations[self._piece] += operations
        if self._peak is not None and not func.is_view:
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            moved = sum(t.numel() * t.element_size() for t in (*given, *made))
            self.now += self._peak.seconds(operations, moved)
        return result

    def _note_weights(self, made: Sequence[Tensor], args: Sequence[Any]) -> None:
        given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
        if any(_key(tensor) in self._trained for tensor in given):
            self.split[self._piece] += sum(t.numel() * t.element_size() for t in made)

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            try:
                storage = tensor.untyped_storage()
            except (NotImplementedError, RuntimeError):  # sparse: it has none
                continue
            key = storage._cdata
            if key in self._known or key in self._alive:
                continue
            self._alive[key] = _Storage(storage.nbytes(), self._piece)
            self._live += storage.nbytes()
            weakref.finalize(storage, self._freed, key)
        self._reach()

    def _freed(self, key: int) -> None:
        storage = self._alive.pop(key, None)
        if storage is not None:
            self._live -= storage.size

    def _reach(self) -> None:
        self._most[self._piece] = max(self._most[self._piece], self._live)


def _key(tensor: Tensor) -> int | None:
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse: it has none
        return None


class RooflineClock:
    """A `Clock` that goes as a ledger's operations would take."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def mark(self) -> float:
        """See `Clock`."""
        return self._ledger.now

    def seconds(self, marks: Sequence[float]) -> list[float]:
        """See `Clock`."""
        return [after - before for before, after in pairwise(marks)]
