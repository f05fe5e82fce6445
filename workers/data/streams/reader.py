"""Samples of a stream, which gives them one after the other and not by number.

Every process reads the whole stream, and keeps what it is asked for by place:

    stream, the same everywhere    0 1 2 3 4 5 6 7 8 9
    this process                   . . 2 3 . . 6 7 . .

So which sample is whose does not depend on who reads, and a run goes on at any place: what comes
before it is read once more and let go, from the nearest place that the stream has a state of.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.utils.data import _utils

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.random_state import kept_random_state, seed_random
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.order import mix_seed
from bundlerun.workers.data.samples import Answer, Batch, Request, seed_of_joining
from bundlerun.workers.data.streams.digest import digest_of
from bundlerun.workers.data.streams.places import NUM_COMPARED, Place, Places
from bundlerun.workers.recipe import Sample, Stream, UnreadableSample

_STATES = ("state_dict", "load_state_dict")
_BEGIN = -1
"""In place of a sample's number: what is random before the first."""


class StreamReader:
    """A map-style data set of whole micro-batches, as `Reader`, over a stream.

    What is random about sample i of epoch e is a function of (seed, e, i) only (I1).

    Args:
        stream: of the samples.
        num_samples: of an epoch; None: the stream says it, and has no more of them.
        seed: of the run.
        collate: joins the samples of a micro-batch.
        places: where the states of a stream that has `state_dict` are kept; None: nowhere.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        num_samples: int | None,
        seed: int,
        collate: Collate = Collate(),  # noqa: B008 (frozen)
        places: Places | None = None,
    ) -> None:
        self._stream = stream
        self._is_exact = num_samples is None
        self._count = len(stream) if num_samples is None else num_samples  # type: ignore[arg-type] # has one
        self._seed = seed
        self._collate = collate
        has_states = all(callable(getattr(stream, name, None)) for name in _STATES)
        self._places = places if has_states else None
        self._due: Place | None = None
        self._source: Any = stream
        """What the pass is of: the stream, or a copy that has taken up a state."""
        self._pass: Iterator[Sample] | None = None
        self._epoch = 0
        self._next = 0
        self._has_jumped = False

    def __getitem__(self, request: Request) -> Answer:
        """Reads on, from the beginning if it is past the place; errors are as of `Reader`."""
        try:
            # Without loading processes this one trains, too, with the same generators.
            with kept_random_state(), _alone():
                samples = [self._at(request.epoch, index) for index in request.indices]
                seed_random(seed_of_joining(self._seed, request))
                inputs, target = self._collate(samples, request.indices)
        except ConfigError as exc:
            return Answer(None, (str(exc),))
        return Answer(Batch(inputs, target, 0), ())

    def _at(self, epoch: int, index: int) -> Sample:
        is_in_pass = self._pass is not None and epoch == self._epoch and index >= self._next
        if not is_in_pass or self._is_far(index):
            self._begin_near(epoch, index)
        while self._next < index:
            self._read()
        sample = self._read()
        if self._next == self._count and self._is_exact:
            self._check_end()
        return sample

    def _is_far(self, index: int) -> bool:
        """Whether a place is nearer than the pass, of which only the first samples were looked at.

        Asked once: a run that goes on skips what it has used, and later gaps are others' samples.
        """
        if self._places is None or self._has_jumped or index - self._next < self._places.between:
            return False
        self._has_jumped = True
        place = next(self._places.before(self._epoch, index), None)
        return place is not None and place.number > self._next

    def _begin_near(self, epoch: int, index: int) -> None:
        """Begins a pass at the nearest place before a sample that the stream can begin at."""
        if self._places is not None:
            self._places.forget_before(epoch - 1)
            place = next(self._places.before(epoch, index), None)
            if place is not None and self._takes_up(place):
                return
            if place is not None:
                # The others would fail alike, and each refills whatever the stream shuffles in.
                self._places = None
        self._begin(self._stream, epoch, 0)

    def _takes_up(self, place: Place) -> bool:
        # Whatever goes wrong in a state that is not as the stream has it now: there is another way.
        with suppress(Exception):
            if self._copy_at(place):
                found = [digest_of(self._read(), is_exact=True) for _ in place.following]
                # Once more, as these have been read.
                return found == place.following and self._copy_at(place)
        return False

    def _copy_at(self, place: Place) -> bool:
        # A copy, so that the stream itself still begins at its beginning.
        copied: Any = copy.deepcopy(self._stream)
        self._begin(copied, place.epoch, place.number, place.state)
        return True

    def _begin(self, source: Any, epoch: int, number: int, state: object = None) -> None:  # noqa: ANN401 (a user's)
        seed_random(mix_seed(self._seed, epoch, _BEGIN))
        set_epoch = getattr(source, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)
        if state is not None:
            source.load_state_dict(state)
        self._source, self._due = source, None
        self._pass, self._epoch, self._next = iter(source), epoch, number

    def _read(self) -> Sample:
        assert self._pass is not None
        self._note_state()
        # What the stream draws for it; also where it is let go, as drawing has moved the stream.
        seed_random(mix_seed(self._seed, self._epoch, self._next))
        try:
            sample = next(self._pass)
        except StopIteration:
            raise ConfigError(
                f"the stream {self._name} has ended after {self._next} of {self._count} samples; "
                "say with DataSets(num_train=..., num_val=...) how many there are, and let it give "
                "all of them on each rank and in each loading process"
            ) from None
        except UnreadableSample as exc:
            self._pass = None
            raise ConfigError(
                f"{exc}; a stream has no other sample for it: leave it out where the stream is made"
            ) from exc
        self._next += 1
        if self._due is not None and self._places is not None:
            self._due.following.append(digest_of(sample, is_exact=True))
            if len(self._due.following) == NUM_COMPARED:
                self._places.keep(self._due)
                self._due = None
        return sample

    def _note_state(self) -> None:
        """Takes the state of the stream, where it is to be kept."""
        if self._places is None or not self._places.is_due(self._epoch, self._next):
            return
        state = self._source.state_dict()
        try:
            kept = json.loads(json.dumps(state))
        except (TypeError, ValueError):
            kept = None
        if kept is None or kept != state:
            # Its passes are read from their beginning.
            self._places = None
            return
        self._due = Place(self._epoch, self._next, kept, [])

    def _check_end(self) -> None:
        assert self._pass is not None
        if next(self._pass, self) is not self:
            raise ConfigError(
                f"the stream {self._name} says that it has {self._count} samples, and gives more; "
                "say how many there are with DataSets(num_train=..., num_val=...)"
            )
        self._pass = None

    @property
    def _name(self) -> str:
        return type(self._stream).__name__


@contextmanager
def _alone() -> Iterator[None]:
    """Hides from a stream that there are other loading processes: it is to give all samples."""
    worker: Any = _utils.worker
    known, worker._worker_info = worker._worker_info, None
    try:
        yield
    finally:
        worker._worker_info = known
