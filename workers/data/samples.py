"""Reads the samples of one micro-batch by number, the same whichever process does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.random_state import kept_random_state, seed_random
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.recipe import Sample, SampleSet, UnreadableSample

MAX_UNREADABLE_IN_A_ROW = 1000
_JOINED = -1
"""No number of a sample."""


class Batch(NamedTuple):
    """The samples of one micro-batch, stacked along a new first dimension; nested tensors."""

    inputs: tuple[Any, ...]
    """What the model is called with."""
    target: Any
    num_unreadable: int
    """Samples of it that another one stands in for."""


class Request(NamedTuple):
    """The samples of one micro-batch, by index."""

    epoch: int
    indices: Sequence[int]
    """Plus the number of all samples for each time that the epoch has had it before."""
    source: int = 0
    """Which of a loader's."""


class Answer(NamedTuple):
    """A batch, or why there is none; passes from one process to another as it is."""

    batch: Batch | None
    messages: tuple[str, ...]
    """One per unreadable sample; the reason, where there is no batch."""


def seed_of_joining(seed: int, request: Request) -> int:
    """For what is random about a micro-batch as a whole, whichever bundle has it (I1)."""
    return mix_seed(seed, request.epoch, _JOINED, *request.indices)


class Reader:
    """A map-style data set of whole micro-batches: a request gives an answer.

    What is random about sample i in epoch e is a function of (seed, e, i) only (I1), and of which
    time it is, where an epoch has it several times.

    Args:
        samples: the single samples.
        seed: of the run.
        skip_unreadable: put the next readable sample in an unreadable one's place.
        collate: joins the samples of a micro-batch.
    """

    def __init__(
        self,
        samples: SampleSet,
        *,
        seed: int,
        skip_unreadable: bool,
        collate: Collate = Collate(),  # noqa: B008 (frozen)
    ) -> None:
        self._samples = samples
        self._seed = seed
        self._skip_unreadable = skip_unreadable
        self._collate = collate

    def __getitem__(self, request: Request) -> Answer:
        """Reads; an error that the user can act on is the answer's message."""
        unreadable: list[str] = []
        samples = []
        try:
            # Without loading processes this one trains, too, with the same generators.
            with kept_random_state():
                for index in request.indices:
                    sample, message = self._read(index, request.epoch)
                    samples.append(sample)
                    unreadable += message
                seed_random(seed_of_joining(self._seed, request))
                numbers = [index % len(self._samples) for index in request.indices]
                inputs, target = self._collate(samples, numbers)
        except ConfigError as exc:
            # As a value, see `MicrobatchLoader._next`.
            return Answer(None, (str(exc),))
        return Answer(Batch(inputs, target, len(unreadable)), tuple(unreadable))

    def _read(self, index: int, epoch: int) -> tuple[Sample, list[str]]:
        """The sample, or the next readable one in data-set order and why it stands there."""
        messages: list[str] = []
        time, index = divmod(index, len(self._samples))
        again = (time,) if time else ()
        for offset in range(min(len(self._samples), MAX_UNREADABLE_IN_A_ROW)):
            actual = (index + offset) % len(self._samples)
            # By the sample that is read, so that a substitute is drawn as in its own place.
            seed_random(mix_seed(self._seed, epoch, actual, *again))
            try:
                # Only the sample asked for counts as unreadable, not those skipped on the way.
                return self._samples[actual], messages[:1]
            except UnreadableSample as exc:
                if not self._skip_unreadable:
                    raise ConfigError(
                        f"{exc}; replace it, or continue without it with --skip-unreadable"
                    ) from exc
                messages.append(str(exc))
        raise ConfigError(
            f"{len(messages)} samples in a row are unreadable, the first: {messages[0]}; "
            "is the data of another kind?"
        )
