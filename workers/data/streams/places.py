"""Places in a pass of a stream, and the state that the stream has there: a run may begin at one.

    samples     0 1 2 3 ... 100 101 102 ... 107 108 ...
    a place                 ^ state_dict()  ^
                            `--- digests ---'          kept together, a file each

A state is taken up where the stream then gives the same next samples as it did; else it says less
than it should, as one that leaves a shuffle buffer out, and the pass is read from its beginning.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundlerun.launcher.run_folder.files import write_text

NUM_COMPARED = 8
"""Samples whose digests are kept with a state."""
_MOST, _FEWEST_SAMPLES = 100, 64
"""Places of an epoch; samples between two."""
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a pass.

    Args:
        epoch: of the pass.
        number: of samples before it.
        state: of the stream, plain values.
        following: the digests of the next samples.
    """

    epoch: int
    number: int
    state: Any
    following: list[str]


class Places:
    """The places of one stream that any process of the run, in any start, has kept.

    Args:
        folder: of the run, for this; made when it is needed.
        source: which of the run's streams.
        num_samples: of an epoch.
    """

    def __init__(self, folder: Path, source: int, num_samples: int) -> None:
        self._folder = folder
        self._source = source
        self.between = max(_FEWEST_SAMPLES, -(-num_samples // _MOST))
        """Samples between two places."""
        self._last = num_samples - NUM_COMPARED

    def is_due(self, epoch: int, number: int) -> bool:
        """Whether a state is to be kept here, which nobody has."""
        if not 0 < number <= self._last or number % self.between:
            return False
        return not self._file(epoch, number).exists()

    def keep(self, place: Place) -> None:
        """Keeps one; where that is not possible, a start begins further back."""
        found = {"state": place.state, "following": place.following}
        with suppress(OSError):
            write_text(self._file(place.epoch, place.number), json.dumps(found))

    def before(self, epoch: int, number: int) -> Iterator[Place]:
        """Those of an epoch up to a place, the nearest first, as far as they are whole."""
        numbers = (n for e, n in self._kept() if e == epoch and n <= number)
        for each in sorted(numbers, reverse=True):
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(self._file(epoch, each).read_text(encoding="utf-8"))
                yield Place(epoch, each, found["state"], list(found["following"]))

    def forget_before(self, epoch: int) -> None:
        """Removes those of earlier epochs, which no checkpoint leads to any more."""
        for kept, number in self._kept():
            if kept < epoch:
                with suppress(OSError):
                    self._file(kept, number).unlink()

    def _kept(self) -> list[tuple[int, int]]:
        """Epoch and number of each."""
        try:
            names = [_NAME.fullmatch(path.name) for path in self._folder.iterdir()]
        except OSError:
            return []
        return [(int(m[2]), int(m[3])) for m in names if m and int(m[1]) == self._source]

    def _file(self, epoch: int, number: int) -> Path:
        return self._folder / f"{self._source}-{epoch}-{number}.json"
