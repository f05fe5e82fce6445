"""State that a forward writes: power iterations, codebooks, counters, embeddings with a norm limit.

    step    | start | forward 0 | start | forward 1 | start | forward 2 |   start: as the step began
    kept            `-- what it has written               dropped
    at the end:     what the forward of the step's micro-batch 0 has left, on every replica

Each forward of a step begins with the same state, and what the first one leaves stays. So it does
not depend on how the micro-batches are shared out (I1), and all replicas stay equal. With one
replica and one micro-batch per step it is what plain torch does; DDP keeps one replica's, too.

Running statistics of batch norms and instance norms go another way: see batchnorm.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.shared import shared_parameters
from bundlerun.splits.stage import Forward
from bundlerun.workers.model.small_copies import SmallCopies, version, versions
from bundlerun.workers.values.flat import name_of_dtype
from bundlerun.workers.values.module_tensors import (
    TensorPlace,
    limited_embeddings,
    may_be_written,
    tensor_places,
)

log = logging.getLogger(__name__)


class ForwardState:
    """Keeps what forwards write equal on all replicas of a stage.

    What is written is noticed by the version counter of each tensor; in the first forward of
    training, and of evaluation, also by comparing, as a write through `.data` counts no version.

    Where a later micro-batch is the first ever to write a tensor, what the step began with is known
    of small buffers only, see `SmallCopies`. Another keeps what is there at the end of that step.

    Args:
        stage: this rank's part of the model.
        chunks_per_stage: of the model.
        all_sum: sums float64 numbers, (n,), over the replicas of the stage; collective.
        speaks: whether this rank tells the user what was noticed.
    """

    def __init__(
        self,
        stage: nn.Module,
        chunks_per_stage: int,
        all_sum: Callable[[Tensor], Tensor],
        *,
        speaks: bool = False,
    ) -> None:
        self._stage = stage
        self._all_sum = all_sum
        self._speaks = speaks
        self._places = tensor_places(stage)
        self._layouts = [(p.tensor.shape, p.tensor.dtype) for p in self._places]
        self._chunks_per_stage = chunks_per_stage
        self._to_compare = set(product(range(chunks_per_stage), (True, False)))
        self._has_run: set[int] = set()
        self._versions: list[int] = []
        self._index: dict[int, int] = {}
        self._found: set[int] = set()
        self._caches: set[int] = set()
        self._written: list[int] = []
        self._start: dict[int, Tensor] = {}
        self._kept: dict[int, Tensor] = {}
        self._small = SmallCopies(stage, self._places)

    def begin_step(self) -> None:
        """Call it before the forwards of a step."""
        self._has_run.clear()
        self._kept.clear()
        self._start = {i: self._places[i].tensor.detach().clone() for i in self._written}
        # As of now: what the optimizer has written before belongs to the start.
        self._versions = versions(self._places)
        self._small.refresh()

    def expect_written(self, parameters: Iterable[nn.Parameter]) -> None:
        """The optimizer has just written them, in the middle of a forward: no forward has."""
        self._index = self._index or {id(p.tensor): i for i, p in enumerate(self._places)}
        for parameter in parameters:
            i = self._index[id(parameter)]
            self._versions[i] = version(self._places[i])

    def watched(self, chunk: int, forward: Forward) -> Forward:
        """`forward` of a chunk, which begins with the step's state each time."""

        def run(*inputs: Tensor) -> object:
            self.undo()
            # Only the first forward of a step counts; what later ones write is undone.
            if chunk in self._has_run:
                return forward(*inputs)
            self._has_run.add(chunk)
            copies = self._copies(chunk)
            result = forward(*inputs)
            # Two ways to notice: numbers, where no version counts, and versions.
            self._compare(copies)
            self._notice()
            self._keep()
            return result

        return run

    def undo(self) -> None:
        """Takes back what the forwards since `begin_step` have written."""
        self._notice_small()
        for i, start in self._start.items():
            # Through .data: what a backward still needs is as valid as after the model's own next
            # write, and no less.
            self._places[i].tensor.data.copy_(start)

    def count_found(self) -> int:
        """Number of written tensors that the other replicas do not know of; after the forwards."""
        self._notice()
        return len(self._found)

    @property
    def writes_parameters(self) -> bool:
        """Whether forwards write any, as far as this rank knows; after the forwards of a step."""
        return any(self._places[i].is_parameter for i in (*self._written, *self._found))

    @property
    def is_quiet(self) -> bool:
        """Whether no forward writes anything, as far as this rank knows."""
        return not self._written and not self._found

    def settle(
        self,
        num_found: float,
        *,
        is_first: bool,
        has_stepped: bool = False,
        has_begun: bool = False,
    ) -> None:
        """Gives every replica what the step's micro-batch 0 has left.

        Collective: every replica of the stage, after the sums of the step.

        Args:
            num_found: sum of `count_found` over the replicas.
            is_first: whether this rank has done micro-batch 0.
            has_stepped: whether the optimizer has changed parameters already; not where
                `writes_parameters`, as it begins with what forwards have left there.
            has_begun: whether the next step has its first forward already; only where `is_quiet`.

        Raises:
            RuntimeError: one of them, and another replica has written what must come before it.
        """
        # Rare: in a step of which some replica has found something new.
        if num_found:
            self._agree()
            if has_begun or (has_stepped and self.writes_parameters):
                raise RuntimeError(
                    "a forward on another replica is the first one to write to the model's state, "
                    "which this rank has used already for what comes after it; another start does "
                    "this step again, as it should be done"
                )
        if not self._written:
            return
        # What the first forward has left; else what the step began with; else what is there.
        own = [self._kept.get(i, self._start.get(i, self._places[i].tensor)) for i in self._written]
        numbers = torch.cat([_numbers(tensor) for tensor in own])
        # A sum with zeros is a broadcast from the one rank that did micro-batch 0.
        sums = self._all_sum(numbers if is_first else torch.zeros_like(numbers))
        for i, part in zip(self._written, sums.split([_num_numbers(t) for t in own]), strict=True):
            _overwrite(self._places[i].tensor, part)

    def apart(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`tensors` with copies of those that the next forward will write."""
        written = {self._places[i].tensor.data_ptr() for i in self._written}
        return {n: t.clone() if t.data_ptr() in written else t for n, t in tensors.items()}

    # --- noticing

    def _copies(self, chunk: int) -> dict[int, Tensor]:
        """Before a chunk's first forward in a mode: what it may write without a version."""
        # Not what the stage says: a model's own train() may set anything.
        case = chunk, torch.is_grad_enabled()
        if case not in self._to_compare:
            return {}
        self._to_compare.remove(case)
        limited = limited_embeddings(self._stage)
        return {
            i: place.tensor.detach().clone()
            for i, place in enumerate(self._places)
            if i not in self._start and may_be_written(place, limited)
        }

    def _compare(self, copies: dict[int, Tensor]) -> None:
        for i, copy in copies.items():
            now = self._places[i].tensor.detach()
            if now.shape != copy.shape or now.dtype != copy.dtype or not _is_equal(now, copy):
                self._found.add(i)
                self._start[i] = copy

    def _notice_small(self) -> None:
        """Learns what small buffers began the step with that nobody knew to be written."""
        for i, value in self._small.written():
            if i not in self._start and self._places[i].tensor.shape == value.shape:
                self._found.add(i)
                self._start[i] = value

    def _notice(self) -> None:
        """Finds what was written since the step began.

        Raises:
            ConfigError: a forward changes the shape or dtype of what a checkpoint has to keep.
        """
        self._notice_small()
        now = versions(self._places)
        if now != self._versions:
            known = {*self._written, *self._caches}
            pairs = enumerate(zip(now, self._versions, strict=True))
            self._found |= {i for i, (new, old) in pairs if new != old and i not in known}
        for i in list(self._found):
            place = self._places[i]
            if (place.tensor.shape, place.tensor.dtype) == self._layouts[i]:
                continue
            if place.is_kept:
                raise ConfigError(
                    f"the forward of the model makes {place.name!r} another shape or dtype "
                    f"({_layout_text(*self._layouts[i])}, then "
                    f"{_layout_text(place.tensor.shape, place.tensor.dtype)}), which replicas and "
                    "checkpoints cannot follow; give it its full size, or register it with "
                    "persistent=False where it is a cache"
                )
            # A cache that grows, in no checkpoint: each replica keeps its own.
            self._caches.add(i)
            self._start.pop(i, None)
        self._found -= self._caches

    def _agree(self) -> None:
        """All replicas learn what any of them has found.

        Collective: every replica of the stage.
        """
        mask = torch.zeros(len(self._places), dtype=torch.float64, device=_device(self._places))
        # Places are in the same order on all replicas, so an index means the same everywhere.
        mask[sorted(self._found)] = 1
        found = self._all_sum(mask).nonzero().flatten().tolist()
        self._found.clear()
        new = [i for i in found if i not in self._written]
        self._refuse_shared(new)
        self._written = sorted([*self._written, *new])
        if self._speaks and new:
            names = ", ".join(self._places[i].name for i in new[:3])
            more = f" and {len(new) - 3} more" if len(new) > 3 else ""
            log.info(
                "the forward of the model writes %s%s: after each step all replicas have what its "
                "first micro-batch left there", names, more,
            )  # fmt: skip

    def _refuse_shared(self, new: Sequence[int]) -> None:
        shared = {id(parameter) for parameter in shared_parameters(self._stage).values()}
        for place in (self._places[i] for i in new):
            if id(place.tensor) in shared:
                raise ConfigError(
                    f"the forward of the model writes {place.name!r}, of which each stage that "
                    "uses it has a copy; cut where all its uses are on one side, or use --shape 1"
                )

    def _keep(self) -> None:
        """Keeps what the first forward of a chunk has left."""
        for i in (*self._written, *self._found):
            now, start = self._places[i].tensor.detach(), self._start.get(i)
            # A chunk that leaves a tensor alone must not stand for the one that writes it.
            if self._chunks_per_stage == 1 or start is None or not _is_equal(now, start):
                self._kept[i] = now.clone()


def _device(places: Sequence[TensorPlace]) -> torch.device:
    return places[0].tensor.device


def _is_equal(one: Tensor, other: Tensor) -> bool:
    """Whether they are equal, a NaN to a NaN as well."""
    return torch.equal(one, other) or bool(
        ((one == other) | ((one != one) & (other != other))).all()
    )


def _num_numbers(tensor: Tensor) -> int:
    return tensor.numel() * (2 if tensor.is_complex() else 1)


def _numbers(tensor: Tensor) -> Tensor:
    detached = tensor.detach()
    real = torch.view_as_real(detached) if detached.is_complex() else detached
    return real.reshape(-1).double()


def _overwrite(tensor: Tensor, numbers: Tensor) -> None:
    real = torch.view_as_real(tensor.data) if tensor.is_complex() else tensor.data
    real.copy_(numbers.view(real.shape))


def _layout_text(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'scalar'} {name_of_dtype(dtype)}"
