"""Builds a model whose parameters get their numbers late, and then only those that are wanted.

    [1] nn.init.normal_(a.weight)   noted, with the state of the random numbers; drawn into memory
    [2] nn.init.normal_(b.weight)     that is used again and again, so that what follows is as ever
    [3] b.weight.data.mul_(0.5)     noted
        ... the model is cut, and this rank has b ...
    [4] what was noted for b.weight is done, each draw from the state that it had

So they are the numbers of a model that is built in full, to the bit, and memory that nobody wants
is never written: the system has not even given it. What was left out and is read while the model
is built, or is kept beside its state, means that it is built in full, as `blank` does.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from bundlerun.splits.random_state import kept_random_state, take_random_state
from bundlerun.workers.model.blank import Call, LeavesOut, left_out_whole

Built = TypeVar("Built", bound=nn.Module | Sequence[nn.Module])
LEAST_BYTES = 256 << 20
"""Parameters up to which all are filled at once: that is sooner done than noted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Write:
    """One that was left out.

    Args:
        storage: address of the parameter's memory.
        tensor: the parameter, or a view of it.
        call: does it.
        state: of the random numbers before it.
        has_grad: whether autograd was on.
    """

    storage: int
    tensor: Tensor
    call: Call
    state: Tensor
    has_grad: bool


class Late:
    """What was left out of a model that was built."""

    def __init__(self, writes: Sequence[_Write], known: Iterable[Tensor]) -> None:
        self._writes = list(writes)
        self._known = {_address(tensor) for tensor in known}

    def fill(self, part: nn.Module) -> bool:
        """Writes what was left out of a part of the model; False: it is not all of it.

        The random numbers of this process stay as they are.
        """
        wanted = {_address(tensor) for tensor in (*part.parameters(), *part.buffers())}
        # Another memory than the model's: a copy was made of numbers that were not there.
        if not wanted <= self._known:
            return False
        with kept_random_state():
            for write in self._writes:
                if write.storage not in wanted:
                    continue
                # [4]
                torch.set_rng_state(write.state)
                with torch.set_grad_enabled(write.has_grad):
                    write.call(write.tensor)
        self._writes.clear()
        return True


def build_late(
    build: Callable[[], Built], seed: int, *, least_bytes: int = LEAST_BYTES
) -> tuple[Built, Late | None]:
    """Like `build()`, but most parameters are left without numbers until `Late.fill`.

    Args:
        build: may be called twice, and gives the same each time.
        seed: of torch's random numbers while it builds.
        least_bytes: of parameters that are filled at once.

    Returns:
        None: it was built in full.
    """
    torch.manual_seed(seed)
    begin_again = take_random_state()
    notes = _Notes(least_bytes)
    built = _noted(build, notes)
    if built is None or notes.is_read or notes.has_stray(built):
        begin_again()
        return build(), None
    if not notes.writes:
        return built, None
    roots = [built] if isinstance(built, nn.Module) else built
    known = [t for root in roots for t in (*root.parameters(), *root.buffers())]
    return built, Late(notes.writes, known)


def _noted(build: Callable[[], Built], notes: _Notes) -> Built | None:
    """What `build` gives; None: it fails, which it may not do where nobody looks on."""
    try:
        with notes, left_out_whole(notes):
            return build()
    except Exception:
        # A mistake of the model's own comes again, and is told then.
        return None


class _Notes(LeavesOut):
    """Notes what it leaves out."""

    def __init__(self, least_bytes: int) -> None:
        super().__init__()
        self.writes: list[_Write] = []
        self._least_bytes = least_bytes
        self._filled: set[int] = set()
        self._num_filled = 0
        self._scratch = _Scratch()

    def leave_out(self, tensor: Tensor) -> bool:
        """See `LeavesOut`; the first parameters get their numbers."""
        if not isinstance(tensor, nn.Parameter) or self._is_blank(tensor):
            return super().leave_out(tensor)
        address = _address(tensor)
        more = 0 if address in self._filled else tensor.nbytes
        if self._num_filled + more <= self._least_bytes:
            self._filled.add(address)
            self._num_filled += more
            return False
        return super().leave_out(tensor)

    def leaves_out(self, call: Call, tensor: Tensor) -> None:
        """See `LeavesOut`."""
        given = tree_leaves([call.others, dict(call.named)])
        # Another generator would go on where nobody has put it back to.
        self.is_read |= any(isinstance(leaf, torch.Generator) for leaf in given)
        # Numbers that may change before they are written.
        others, named = tree_map_only(Tensor, Tensor.clone, (call.others, dict(call.named)))
        state = torch.get_rng_state()
        with torch.no_grad():
            call(self._scratch.like(tensor))
        # Most that is no draw comes after one: it has a state in common with the next.
        if self.writes and torch.equal(state, self.writes[-1].state):
            state = self.writes[-1].state
        self.writes.append(
            _Write(
                storage=_address(tensor),
                tensor=tensor,
                call=Call(call.function, others, named),
                state=state,
                has_grad=torch.is_grad_enabled(),
            )
        )


class _Scratch:
    """Memory to draw into, from the system.

    The allocator would give what is freed here to parameters: pages that are there, though nobody
    has written to them.
    """

    def __init__(self) -> None:
        self._bytes = torch.empty(0, dtype=torch.uint8)

    def like(self, tensor: Tensor) -> Tensor:
        """One of the same shape, strides and type; valid until the next call."""
        if not tensor.numel():
            return torch.empty_like(tensor)
        steps = [(n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True)]
        size = tensor.element_size() * (sum(steps) + 1)
        if size > self._bytes.numel():
            self._bytes = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
        flat = self._bytes[:size].view(tensor.dtype)
        return flat.as_strided(tensor.shape, tensor.stride())


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
