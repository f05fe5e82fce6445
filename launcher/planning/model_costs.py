"""What a model costs, piece by piece between the places where it can be cut.

piece 0 | piece 1 | piece 2        boundary i is between the pieces i and i + 1
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from bundlerun.launcher.choices import Cutter, CutterChoice
from bundlerun.launcher.errors import ConfigError, nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What lies between two neighbouring boundaries, for one micro-batch on one device.

    Args:
        forward_s: seconds of a forward.
        backward_s: of a whole backward.
        weight_s: the part of it that only makes the gradients of parameters.
        split_s: what the backward takes longer in two passes, as zero-bubble has it.
        kept_bytes: of what a forward keeps for the backward, the input of the piece left out where
            another piece keeps it.
        peak_bytes: the most that a pass has at once beside what is kept and the parameters.
        split_bytes: of gradients that a backward without those of parameters leaves for the pass
            that makes them; 0 where no such backward was measured.
        parameter_bytes: of parameters, frozen ones too; what pieces share is in `SharedParameters`.
        trained_bytes: of those that have gradients.
        buffer_bytes: of buffers.
        longest_bytes: of the longest parameter that has gradients: they leave together.
        num_unused: of those that are trained, how many got no gradient in a pass.
    """

    forward_s: float = 0.0
    backward_s: float = 0.0
    weight_s: float = 0.0
    split_s: float = 0.0
    kept_bytes: int = 0
    peak_bytes: int = 0
    split_bytes: int = 0
    parameter_bytes: int = 0
    trained_bytes: int = 0
    buffer_bytes: int = 0
    longest_bytes: int = 0
    num_unused: int = 0


_LARGEST = ("peak_bytes", "longest_bytes")
"""Of several pieces these are those of one of them."""
_SUMMED = tuple(f.name for f in fields(Piece) if f.name not in _LARGEST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A place to cut.

    Args:
        name: for `--cut`.
        forward_bytes: of what is sent across it per micro-batch.
        backward_bytes: of the gradients that come back.
        late_bytes: of what is sent, that only pieces behind keep for their backward. Their
            `kept_bytes` have it; a stage that begins here has what it was sent in any case.
    """

    name: str
    forward_bytes: int
    backward_bytes: int
    late_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedParameters:
    """Parameters that several pieces use, such as tied embeddings: each stage has a copy.

    Args:
        num_bytes: of them.
        pieces: their numbers, increasing.
        is_trained: whether they have gradients.
    """

    num_bytes: int
    pieces: tuple[int, ...]
    is_trained: bool = True


@dataclass(frozen=True, kw_only=True)
class ModelCosts:
    """All of a model, for micro-batches of one size.

    Args:
        samples: of a micro-batch.
        pieces: in order, one at least.
        boundaries: between them, one less.
        shared: in no order.
        input_bytes: of what stage 0 is given per micro-batch.
        target_bytes: of what the last stage is given beside.
        loss_s: seconds of the loss and its backward, on the last stage.
    """

    samples: int
    pieces: tuple[Piece, ...]
    boundaries: tuple[Boundary, ...]
    shared: tuple[SharedParameters, ...] = ()
    input_bytes: int = 0
    target_bytes: int = 0
    loss_s: float = 0.0

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.boundaries) + 1:
            raise ValueError(f"{len(self.pieces)} pieces, {len(self.boundaries)} boundaries")

    @cached_property
    def _sums(self) -> dict[str, list[float]]:
        return {
            name: list(accumulate((getattr(p, name) for p in self.pieces), initial=0))
            for name in _SUMMED
        }

    def total(self, what: str, first: int, end: int) -> float:
        """The sum of a field of `Piece` over some pieces; of none that is one piece's."""
        sums = self._sums[what]
        return sums[end] - sums[first]

    def part(self, first: int, end: int) -> Piece:
        """The pieces from `first` to before `end`, as one; with what they share with others."""
        shared = [s for s in self.shared if any(first <= p < end for p in s.pieces)]
        more = sum(s.num_bytes for s in shared)
        trained = sum(s.num_bytes for s in shared if s.is_trained)
        totals = {name: self.total(name, first, end) for name in _SUMMED}
        return Piece(
            forward_s=totals["forward_s"],
            backward_s=totals["backward_s"],
            weight_s=totals["weight_s"],
            split_s=totals["split_s"],
            kept_bytes=round(totals["kept_bytes"]),
            peak_bytes=max(p.peak_bytes for p in self.pieces[first:end]),
            split_bytes=round(totals["split_bytes"]),
            parameter_bytes=round(totals["parameter_bytes"]) + more,
            trained_bytes=round(totals["trained_bytes"]) + trained,
            buffer_bytes=round(totals["buffer_bytes"]),
            longest_bytes=max(p.longest_bytes for p in self.pieces[first:end]),
            num_unused=round(totals["num_unused"]),
        )

    def parts(self, cuts: Sequence[int]) -> list[Piece]:
        """What the stages (or chunks) have, cut at the boundaries of these numbers."""
        starts = [0, *(cut + 1 for cut in cuts)]
        ends = [*starts[1:], len(self.pieces)]
        return [self.part(first, end) for first, end in zip(starts, ends, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCosts:
    """What a step costs a rank beside its passes.

    Args:
        state_share: bytes of optimizer state per byte of trained parameters.
        working_share: bytes that the optimizer's step has at once beside, per byte of those.
        update_s_per_byte: seconds of clipping and the optimizer, per byte of trained parameters.
        step_s: seconds of a step that depend on nothing.
        load_s: seconds of one loading process for one sample; 0: not known.
    """

    state_share: float = 0.0
    working_share: float = 0.0
    update_s_per_byte: float = 0.0
    step_s: float = 0.0
    load_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileKey:
    """What a profile holds for; another one of any of these is another profile.

    Args:
        model: all that decides which model it is, in words.
        device: the kind of device that was measured, such as "cpu, 1 thread, MODEL".
        versions: of bundlerun and torch.
        precision: as the option.
        cutter: as the option.
        is_estimate: whether operations and bytes were counted, and nothing was timed.
    """

    model: str
    device: str
    versions: str
    precision: str
    cutter: CutterChoice = "auto"
    is_estimate: bool = False


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The costs of a model, at one size of micro-batch or several.

    Args:
        key: what they hold for.
        by_samples: with growing `samples`, one at least; the same pieces and boundaries in all.
        update: what a step costs beside.
        program_bytes: memory of a rank that has torch and no model.
        cutter: the `--cutter` by which the boundaries are places to cut; None: the model comes
            cut, or cannot be.
        why: that one, in words.
    """

    key: ProfileKey
    by_samples: tuple[ModelCosts, ...]
    update: UpdateCosts
    program_bytes: int = 0
    cutter: Cutter | None = None
    why: str = ""

    @property
    def boundary_names(self) -> tuple[str, ...]:
        """In order, as `--cut` has them."""
        return tuple(boundary.name for boundary in self.by_samples[0].boundaries)

    def cut_numbers(self, cut: Sequence[str], num_chunks: int) -> tuple[int, ...]:
        """The boundaries at which the chunks after the first begin.

        Args:
            cut: their names, or of modules that begin there; none for a list of modules, which
                has as many as there are chunks.
            num_chunks: of the whole model.

        Raises:
            ConfigError: one of them is no boundary of this profile.
        """
        if num_chunks == 1:
            return ()
        names = self.boundary_names
        if not cut and num_chunks == len(names) + 1:
            return tuple(range(len(names)))
        if not cut:
            raise ConfigError(
                f"the profile has {len(names) + 1} pieces for {num_chunks} chunks, and no --cut "
                f"says where they begin; give {num_chunks - 1} names that bundlerun cuts shows"
            )
        places = {name: number for number, name in enumerate(names)}
        return tuple(_place(places, name) for name in cut)

    def at(self, samples: int) -> ModelCosts:
        """The costs for micro-batches of any size, on the line through the two nearest ones.

        With one size only, everything grows with the samples but parameters and buffers.
        """
        sizes = [costs.samples for costs in self.by_samples]
        if samples in sizes:
            return self.by_samples[sizes.index(samples)]
        if len(sizes) == 1:
            return _scaled(self.by_samples[0], samples)
        last = min(max(bisect_left(sizes, samples), 1), len(sizes) - 1)
        return _between(self.by_samples[last - 1], self.by_samples[last], samples)


def _place(places: Mapping[str, int], cut: str) -> int:
    """A place is called after the outermost module that begins there: layer3 for layer3.0."""
    outer = cut
    while outer not in places and "." in outer:
        outer = outer.rpartition(".")[0]
    if outer not in places:
        raise ConfigError(
            f"--cut {cut} is no place that was profiled; {nearest(cut, places)}; bundlerun profile "
            "shows all"
        )
    return places[outer]


_PER_SAMPLE = (
    *("forward_s", "backward_s", "weight_s", "split_s"),
    *("kept_bytes", "peak_bytes", "split_bytes"),
)
_OF_BOUNDARY = ("forward_bytes", "backward_bytes", "late_bytes")
_OF_MODEL = ("input_bytes", "target_bytes", "loss_s")


def _scaled(costs: ModelCosts, samples: int) -> ModelCosts:
    def none(names: Sequence[str]) -> dict[str, Any]:
        return dict.fromkeys(names, 0)

    nothing = replace(
        costs,
        samples=0,
        pieces=tuple(replace(piece, **none(_PER_SAMPLE)) for piece in costs.pieces),
        boundaries=tuple(replace(one, **none(_OF_BOUNDARY)) for one in costs.boundaries),
        **none(_OF_MODEL),
    )
    return _between(nothing, costs, samples)


def _between(low: ModelCosts, high: ModelCosts, samples: int) -> ModelCosts:
    """On the line through two sizes, before and behind them too; never below 0."""
    share = (samples - low.samples) / (high.samples - low.samples)

    def mixed(one: object, other: object, names: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in names:
            a, b = getattr(one, name), getattr(other, name)
            value = max(0.0, a + share * (b - a))
            found[name] = round(value) if name.endswith("_bytes") else value
        return found

    pairs = zip(low.pieces, high.pieces, strict=True)
    bounds = zip(low.boundaries, high.boundaries, strict=True)
    return replace(
        high,
        samples=samples,
        pieces=tuple(replace(b, **mixed(a, b, _PER_SAMPLE)) for a, b in pairs),
        boundaries=tuple(replace(b, **mixed(a, b, _OF_BOUNDARY)) for a, b in bounds),
        **mixed(low, high, _OF_MODEL),
    )
