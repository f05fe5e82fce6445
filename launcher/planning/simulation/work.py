"""What the ranks of each stage have to do in a step: passes, messages, buckets of gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bundlerun.launcher.layout.bucket_size import MOST_WIDENED
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.planning.candidate import Candidate
from bundlerun.launcher.planning.model_costs import ModelCosts, UpdateCosts

_WIDENED = 2
"""The first bucket is in float64."""
_MOST_FIRST_BYTES = 4 * MOST_WIDENED
_MOST_BUCKETS = 48
"""Of a stage, that are looked at one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """What the passes of a chunk take on a device of speed 1, seconds."""

    forward_s: float
    backward_s: float
    weight_s: float
    split_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """Gradients that leave together.

    Args:
        num_bytes: of them.
        count: of buckets that this one stands for; very many are taken together.
        chunk: of the stage's own, whose last pass makes the last of them.
        after: the share of a whole backward after which it is full.
        after_weights: the same of a weight pass, where there is one.
    """

    num_bytes: int
    count: int = 1
    chunk: int = 0
    after: float = 1.0
    after_weights: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """Of a rank of one stage.

    Args:
        passes: of its own chunks.
        buckets: in the order in which they leave.
        update_s: of its optimizer, on a device of speed 1.
        trained_bytes: its gradients.
    """

    passes: tuple[Passes, ...]
    buckets: tuple[Bucket, ...]
    update_s: float
    trained_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedWork:
    """Gradients of what several stages share."""

    stages: tuple[int, ...]
    buckets: tuple[Bucket, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Of a whole bundle.

    Args:
        stages: by number.
        forward_bytes: of a message from each chunk to the next, per micro-batch.
        backward_bytes: of one from the next chunk back to it.
        target_bytes: from the first stage to the last.
        shared: what stages have in common.
    """

    stages: tuple[StageWork, ...]
    forward_bytes: tuple[int, ...]
    backward_bytes: tuple[int, ...]
    target_bytes: int
    shared: tuple[SharedWork, ...] = ()


def work_of(
    costs: ModelCosts, update: UpdateCosts, candidate: Candidate, bucket_bytes: int
) -> Work:
    """The work of a plan.

    Args:
        costs: of micro-batches of the plan's size.
        update: of a step.
        candidate: the plan.
        bucket_bytes: of a bucket.
    """
    chunks = Chunks(candidate.shape.num_stages, candidate.chunks)
    starts = [0, *(cut + 1 for cut in candidate.cuts)]
    ranges = list(zip(starts, [*starts[1:], len(costs.pieces)], strict=True))
    stages = tuple(
        _stage(costs, update, [ranges[c] for c in chunks.on_stage(stage)], bucket_bytes,
               recomputes=stage in candidate.recompute)
        for stage in range(chunks.num_stages)
    )  # fmt: skip
    bounds = [costs.boundaries[cut] for cut in candidate.cuts]
    return Work(
        stages=stages,
        forward_bytes=tuple(bound.forward_bytes for bound in bounds),
        backward_bytes=tuple(bound.backward_bytes for bound in bounds),
        target_bytes=costs.target_bytes,
        shared=tuple(_shared(costs, ranges, chunks, bucket_bytes)),
    )


def _stage(
    costs: ModelCosts,
    update: UpdateCosts,
    ranges: Sequence[tuple[int, int]],
    bucket_bytes: int,
    *,
    recomputes: bool,
) -> StageWork:
    passes = []
    for first, end in ranges:
        forward_s = costs.total("forward_s", first, end)
        loss_s = costs.loss_s if end == len(costs.pieces) else 0.0
        backward_s = costs.total("backward_s", first, end) + loss_s
        passes.append(
            Passes(
                forward_s=forward_s,
                backward_s=backward_s + (forward_s if recomputes else 0.0),
                weight_s=costs.total("weight_s", first, end),
                split_s=costs.total("split_s", first, end),
            )
        )
    own = round(sum(costs.total("trained_bytes", first, end) for first, end in ranges))
    shared = sum(
        each.num_bytes
        for each in costs.shared
        if each.is_trained and any(f <= p < e for p in each.pieces for f, e in ranges)
    )
    return StageWork(
        passes=tuple(passes),
        buckets=tuple(_buckets(costs, ranges, bucket_bytes)),
        update_s=(own + shared) * update.update_s_per_byte,
        trained_bytes=own + shared,
    )


@dataclass(frozen=True, slots=True)
class _Moment:
    """When in the last backward of a chunk something is there; see `Bucket`."""

    chunk: int
    after: float = 1.0
    after_weights: float = 1.0

    @classmethod
    def of(cls, costs: ModelCosts, chunk: int, first: int, end: int, piece: int) -> _Moment:
        """That at which a piece is done, of a chunk from `first` to before `end`."""

        def share(what: str) -> float:
            whole = costs.total(what, first, end)
            return costs.total(what, piece, end) / whole if whole else 1.0

        return cls(chunk, share("backward_s"), share("weight_s"))

    def not_before(self, other: _Moment | None) -> _Moment:
        """The later of both, in one chunk."""
        if other is None or other.chunk != self.chunk:
            return self
        return _Moment(
            self.chunk,
            max(self.after, other.after),
            max(self.after_weights, other.after_weights),
        )

    def bucket(self, num_bytes: int, count: int = 1) -> Bucket:
        """One that is full then."""
        return Bucket(
            num_bytes=num_bytes,
            count=count,
            chunk=self.chunk,
            after=self.after,
            after_weights=self.after_weights,
        )


def _buckets(
    costs: ModelCosts, ranges: Sequence[tuple[int, int]], bucket_bytes: int
) -> Iterator[Bucket]:
    """The buckets of a stage, as the last backward of each chunk fills them, from its end on.

    They leave in order, so each waits for those before it. One with a parameter that gets no
    gradient is never full, and leaves at the end of all passes, with all after it.
    """
    total = sum(costs.total("trained_bytes", first, end) for first, end in ranges)
    count = _together(total, bucket_bytes)
    size = count * bucket_bytes
    short, lead = _first(costs, ranges)
    if lead is not None:
        yield lead.bucket(_WIDENED * short[1])
    is_held = lead is not None and costs.pieces[short[0]].num_unused > 0
    for chunk in reversed(range(len(ranges))):
        first, end = ranges[chunk]
        filled, moment = 0, _Moment(chunk)
        for number in reversed(range(first, end)):
            piece, before = costs.pieces[number], moment
            is_held |= piece.num_unused > 0
            moment = _Moment.of(costs, chunk, first, end, number).not_before(lead)
            if is_held:
                # The last backward of a step is that of the first chunk.
                before = moment = _Moment(0)
            left = piece.trained_bytes - (short[1] if number == short[0] else 0)
            if piece.longest_bytes > size:
                # No parameter is cut in two, nor joined with what does not fit beside it.
                if filled:
                    yield before.bucket(filled, divided_up(filled, bucket_bytes))
                    filled = 0
                while left >= piece.longest_bytes:
                    yield moment.bucket(piece.longest_bytes)
                    left -= piece.longest_bytes
            filled += left
            while filled >= size:
                yield moment.bucket(size, count)
                filled -= size
        if filled:
            yield moment.bucket(filled, divided_up(filled, bucket_bytes))


def _first(
    costs: ModelCosts, ranges: Sequence[tuple[int, int]]
) -> tuple[tuple[int, int], _Moment | None]:
    """What goes ahead with the small sums of the step: short parameters of the last chunk.

    Returns:
        The piece and its bytes; when they are there, None where there are none.
    """
    first, end = ranges[-1]
    for number in reversed(range(first, end)):
        piece = costs.pieces[number]
        is_long = piece.longest_bytes > _MOST_FIRST_BYTES
        beside = piece.trained_bytes - (piece.longest_bytes if is_long else 0)
        if beside > 0:
            own = _Moment.of(costs, len(ranges) - 1, first, end, number)
            moment = _Moment(0) if piece.num_unused else own
            return (number, min(beside, _MOST_FIRST_BYTES)), moment
    return (-1, 0), None


def _together(num_bytes: float, bucket_bytes: int) -> int:
    """How many buckets are taken for one."""
    return divided_up(divided_up(round(num_bytes), bucket_bytes), _MOST_BUCKETS) or 1


def _shared(
    costs: ModelCosts, ranges: Sequence[tuple[int, int]], chunks: Chunks, bucket_bytes: int
) -> Iterator[SharedWork]:
    found: dict[tuple[int, ...], int] = {}
    for each in costs.shared:
        stages = {
            chunks.stage_of(chunk)
            for chunk, (first, end) in enumerate(ranges)
            if any(first <= piece < end for piece in each.pieces)
        }
        if each.is_trained:
            key = tuple(sorted(stages))
            found[key] = found.get(key, 0) + each.num_bytes
    for stages_of, num_bytes in sorted(found.items()):
        count = _together(num_bytes, bucket_bytes)
        whole, rest = divmod(num_bytes, count * bucket_bytes)
        buckets = [Bucket(num_bytes=count * bucket_bytes, count=count)] * whole
        if rest:
            buckets.append(Bucket(num_bytes=rest, count=divided_up(rest, bucket_bytes)))
        yield SharedWork(stages=stages_of, buckets=tuple(buckets))
