"""One rank that trains some steps whenever it is told to, and says how long they took.

    python paced.py IN OUT STEPS OPTION... DATA

IN and OUT are descriptors: a line in is one block of STEPS steps, a line out what it took: time, or
the calls of its thread, where the line in says "count". It runs with any checkout of bundlerun that
PYTHONPATH names, so it imports nothing else of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from bundlerun.workers import train
from bundlerun.workers.trainer import Trainer


class Pace:
    """Holds the rank back between two blocks."""

    def __init__(self, going: int, told: int, block: int) -> None:
        self._going = os.fdopen(going)
        self._told = os.fdopen(told, "w")
        self._block = block
        self._num_steps = 0
        self._since = (0.0, 0.0)
        self._num_calls = 0

    def step(self) -> None:
        """A step is about to begin."""
        if self._num_steps % self._block == 0:
            self._tell()
            line = self._going.readline()
            if not line:
                os._exit(0)  # enough: how a run ends is not measured
            self._num_calls = 0
            if line == "count\n":
                sys.setprofile(self._count)
            self._since = time.perf_counter(), time.process_time()
        self._num_steps += 1

    def _count(self, _: object, event: str, __: object) -> None:
        self._num_calls += event in ("call", "c_call")

    def _tell(self) -> None:
        """The block before, with all that came after its last step."""
        sys.setprofile(None)
        wall, processor = time.perf_counter(), time.process_time()
        took = {"wall_s": wall - self._since[0], "processor_s": processor - self._since[1]}
        told = {**took, "calls": self._num_calls, "root": str(Path(train.__file__).parents[2])}
        print(json.dumps(told), file=self._told)
        self._told.flush()


def main() -> int:
    """Trains."""
    pace = Pace(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    whole = Trainer.step

    def step(self: Trainer, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        pace.step()
        return whole(self, *args, **options)

    Trainer.step = step  # type: ignore[method-assign]
    return train.main(sys.argv[4:])


if __name__ == "__main__":
    sys.exit(main())
