"""Of each matrix two narrow ones travel, whose product is near to the sum of all nodes'.

    node            kept + gradient = M (n x m)        Q (m x r), the same on all nodes
    exchange        P = M Q            (n x r)         summed over the nodes
    all             P, orthogonal                      worked out by each, to the same bits
    gather          Q = M' P           (m x r)         summed; also the next step's
    all             the sum is P Q'; each node keeps M - P (M' P)' for its next step

What the nodes keep is together what the sum lacks. Vectors, and matrices that would not get
shorter, travel as they are, with the first.

Where replicas have to be equal to the bit, nothing depends on how a processor adds up: sums there
are taken by halves, element by element, and products without fused additions.

Source: Vogels et al., PowerSGD, 2019 (the second algorithm, one step of the power iteration).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bundlerun.workers.rank.comm import Group
from bundlerun.workers.rank.meters import Phase
from bundlerun.workers.sync.bucket import Bucket, num_reals
from bundlerun.workers.sync.legs import Action, Finish
from bundlerun.workers.sync.short.owed import Owed, owed_in
from bundlerun.workers.sync.target import Target

_LEAST = 1e-12
"""Of a column's square that is left beside the others, over all of it: less is nothing but noise,
as the numbers are float32."""


class _Matrix(NamedTuple):
    """A gradient in a bucket that travels as two."""

    begin: int
    rows: int
    columns: int

    @property
    def end(self) -> int:
        """Where it ends in the bucket."""
        return self.begin + self.rows * self.columns

    def of(self, flat: Tensor) -> Tensor:
        """Its numbers in the order of memory, of shape (rows, columns)."""
        return flat[self.begin : self.end].view(self.rows, self.columns)


@dataclass(slots=True)
class _Kept:
    """Of a bucket, from step to step."""

    matrices: Sequence[_Matrix]
    left: Tensor
    """What was lost, flat; where no matrix is, zeros."""
    narrow: list[Tensor]
    """Of each matrix Q, of shape (rank, columns)."""
    sent: list[Tensor] = field(default_factory=list)
    """Two flat buffers of what travels in one leg and the other."""


class LowRank:
    """What both legs share; see `bundlerun.workers.sync.legs.Action.rounding`.

    Args:
        rank: of the matrices that travel.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._kept: dict[Bucket, _Kept] = {}
        self._taken: dict[Bucket, list[tuple[int, Tensor]]] = {}

    def kept(self, bucket: Bucket) -> list[Owed]:
        """See `Rounding`."""
        kept = self._kept.get(bucket)
        if kept is None:
            return []
        begins = {matrix.begin for matrix in kept.matrices}
        parts = owed_in(bucket, 0, kept.left)
        return [part for part in parts if bucket.places[part.parameter][0] in begins]

    def take_up(self, bucket: Bucket, part: Owed) -> None:
        """See `Rounding`."""
        begin = bucket.places[part.parameter][0] + part.begin
        self._taken.setdefault(bucket, []).append((begin, part.numbers.clone()))

    def drop(self) -> None:
        """See `Rounding`. What is narrow goes, too: a number that is not finite would stay."""
        self._taken.clear()
        self._kept.clear()

    def of(self, bucket: Bucket) -> _Kept:
        """What is kept of a bucket, made where it is seen first."""
        found = self._kept.get(bucket)
        if found is None:
            found = self._kept[bucket] = self._made(bucket)
        return found

    def _made(self, bucket: Bucket) -> _Kept:
        matrices = [*_matrices(bucket, self.rank)]
        left = torch.zeros(bucket.wire.numel())
        for begin, numbers in self._taken.pop(bucket, ()):
            left[begin : begin + numbers.numel()] = numbers
        # The same bits on all nodes: no function of random numbers that a processor works out.
        made = torch.Generator().manual_seed(len(self._kept))
        narrow = [
            torch.rand(self.rank, m.columns, generator=made).mul_(2).sub_(1) for m in matrices
        ]
        rest = bucket.wire.numel() - sum(m.rows * m.columns for m in matrices)
        first = rest + self.rank * sum(m.rows for m in matrices)
        second = self.rank * sum(m.columns for m in matrices)
        return _Kept(matrices, left, narrow, [torch.empty(first), torch.empty(second)])


def has_matrices(bucket: Bucket, rank: int) -> bool:
    """Whether anything of it gets shorter."""
    return any(_matrices(bucket, rank))


def _matrices(bucket: Bucket, rank: int) -> Iterator[_Matrix]:
    for parameter, (begin, _) in bucket.places.items():
        rows = parameter.shape[0] if parameter.dim() > 1 else 0
        columns = num_reals(parameter) // rows if rows else 0
        if rank * (rows + columns) < rows * columns:
            yield _Matrix(begin, rows, columns)


class FirstHalf:
    """Sums P, and what travels as it is."""

    phase: Phase = "exchange"

    def __init__(self, target: Target, group: Group, shared: LowRank) -> None:
        self._target = target
        self._group = group
        self._shared = shared
        self.rounding = shared

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        wire = self._target.flat(bucket)
        if wire.dtype != torch.float32:
            return self._group.all_reduce(wire).wait
        kept = self._shared.of(bucket)
        if bucket.is_exact:
            wire += kept.left
            kept.left.zero_()
            return self._group.all_reduce(wire).wait
        buffer = kept.sent[0]
        rest, narrow = _split_first(buffer, kept, self._shared.rank)
        for matrix, q, p in zip(kept.matrices, kept.narrow, narrow, strict=True):
            whole = matrix.of(kept.left)
            whole += matrix.of(wire)
            torch.mm(q, whole.T, out=p)
        torch.cat(_between(wire, kept.matrices), out=rest)
        work = self._group.all_reduce(buffer)

        def finish() -> None:
            work.wait()
            parts = _between(wire, kept.matrices)
            for part, found in zip(parts, rest.split([len(x) for x in parts]), strict=True):
                part.copy_(found)

        return finish


class SecondHalf:
    """Sums Q, and makes the sum of both."""

    phase: Phase = "gather"
    rounding = None
    """That of the first half."""

    def __init__(self, target: Target, group: Group, shared: LowRank) -> None:
        self._target = target
        self._group = group
        self._shared = shared

    def begin(self, bucket: Bucket) -> Finish:
        """See `Action`."""
        wire = self._target.flat(bucket)
        is_short = wire.dtype == torch.float32 and not bucket.is_exact
        kept = self._shared.of(bucket) if is_short else None
        if kept is None or not kept.matrices:
            return lambda: None
        _, narrow = _split_first(kept.sent[0], kept, self._shared.rank)
        buffer = kept.sent[1]
        sizes = [q.numel() for q in kept.narrow]
        parts = [part.view_as(q) for part, q in zip(buffer.split(sizes), kept.narrow, strict=True)]
        for matrix, p, q in zip(kept.matrices, narrow, parts, strict=True):
            p.copy_(orthogonal(p))
            whole = matrix.of(kept.left)
            torch.mm(p, whole, out=q)
            whole.addmm_(p.T, q, alpha=-1)  # of this node alone: how it is rounded is kept, too
        work = self._group.all_reduce(buffer)

        def finish() -> None:
            work.wait()
            for matrix, p, q, own in zip(kept.matrices, narrow, parts, kept.narrow, strict=True):
                product(p, q, matrix.of(wire))
                own.copy_(q)

        return finish


def low_rank_actions(target: Target, groups: Sequence[Group], rank: int) -> list[Action]:
    """Both legs.

    Args:
        target: what of a bucket is exchanged: all of it.
        groups: two communicators of the nodes: the legs run at one time.
        rank: of the matrices that travel.
    """
    shared = LowRank(rank)
    return [FirstHalf(target, groups[0], shared), SecondHalf(target, groups[-1], shared)]


def _split_first(buffer: Tensor, kept: _Kept, rank: int) -> tuple[Tensor, list[Tensor]]:
    """What travels as it is, flat, and of each matrix P, of shape (rank, rows)."""
    sizes = [rank * matrix.rows for matrix in kept.matrices]
    rest, *parts = buffer.split([buffer.numel() - sum(sizes), *sizes])
    return rest, [part.view(rank, -1) for part in parts]


def _between(flat: Tensor, matrices: Sequence[_Matrix]) -> list[Tensor]:
    """The parts of a bucket without its matrices."""
    ends = [0, *(matrix.end for matrix in matrices)]
    begins = [*(matrix.begin for matrix in matrices), flat.numel()]
    return [flat[end:begin] for end, begin in zip(ends, begins, strict=True)]


def orthogonal(rows: Tensor) -> Tensor:
    """An orthonormal basis of some rows, float32 of shape (rank, n); the same bits everywhere.

    By Cholesky's factor of their products, in float64. A row that the ones before it leave nothing
    of becomes zeros; rows with a number that is not finite, such numbers.
    """
    wide = rows.double()
    products = wide[:, None] * wide
    while products.shape[2] > 1:
        size = products.shape[2]
        half = (size + 1) // 2
        added = products[:, :, :half].clone()
        added[:, :, : size - half] += products[:, :, half:]
        products = added
    factor = _cholesky(products[:, :, 0].tolist())
    found: list[Tensor] = []
    for i, of_row in enumerate(factor):
        row = wide[i].clone()
        for k in range(i):
            row -= found[k] * of_row[k]
        found.append(row / of_row[i] if of_row[i] else torch.zeros_like(row))
    return torch.stack(found).float()


def _cholesky(products: Sequence[Sequence[float]]) -> list[list[float]]:
    """The lower factor; a diagonal entry of zero where nothing is left of the row."""
    size = len(products)
    factor = [[0.0] * size for _ in range(size)]
    for i in range(size):
        for k in range(i):
            left = products[i][k]
            for j in range(k):
                left -= factor[i][j] * factor[k][j]
            factor[i][k] = left / factor[k][k] if factor[k][k] else 0.0
        left = products[i][i]
        for j in range(i):
            left -= factor[i][j] * factor[i][j]
        is_nothing = left < _LEAST * products[i][i]  # false for what is not finite
        factor[i][i] = 0.0 if is_nothing else math.sqrt(left)
    return factor


def product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Writes the sum over r of left[r] and right[r], column by row; the same bits everywhere."""
    torch.mul(left[0, :, None], right[0], out=out)
    for column, row in zip(left[1:], right[1:], strict=True):
        # Not in one operation, which would round once or twice, as the processor has it.
        out += column[:, None] * row
