"""What a snapshot of each step costs, whether it is the state to the bit, and what it takes."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.bench import Bench, ratio, turn
from benchmarks.gpu.trained import Load, Ours, load_of
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.device import accelerator
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.snapshot.pace import Pace
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import read_piece
from bundlerun.workers.snapshot.snapshots import Snapshots, Source

_TURN = 2
_MANY = 70
"""More than torch has streams: a stream for each snapshot would be one of another's by then."""


class Keeping:
    """The trainer with its snapshots, as in a run; one after a step only if asked."""

    def __init__(self, bench: Bench, load: Load) -> None:
        self._ours = Ours(load)
        self.meters = Meters()
        name = f"make gpu {os.getpid()}"
        self.room = SnapshotRoom.of(name, "benchmark", str(bench.memory))
        self._snapshots = Snapshots(
            self._ours.session,
            self.room,
            source=Source(state=self._ours.trainer.state),
            meters=self.meters,
            pace=Pace(1),
        )
        self._ours.trainer.sync.hold(self._snapshots)

    def step(self, *, keeps: bool) -> None:
        """One step, perhaps while a snapshot of the one before is taken."""
        if keeps:
            self.save()
        self._ours.step()

    def save(self) -> None:
        """Begins a snapshot."""
        at = self._ours.count
        self._snapshots.save(Progress(step=at, epoch=0, step_in_epoch=at, samples_seen=at))

    def state(self) -> dict[str, Tensor]:
        """A copy of the state, in CPU memory."""
        return {name: t.detach().cpu().clone() for name, t in self._ours.trainer.state().items()}

    def close(self) -> None:
        """Ends the threads and removes the pieces."""
        self._snapshots.close()
        self._ours.close()
        self.room.give_up()
        self.room.close()


def run(bench: Bench) -> None:
    """One setting where launching counts, one where the device does."""
    low: dict[str, Any] = {"precision": "bfloat16", "channels_last": True}
    settings = {
        "8x32": load_of(bench, num_microbatches=8, microbatch=32, **low),
        "1x256": load_of(bench, **low),
    }
    if bench.is_gpu:
        torch.backends.cudnn.benchmark = True
    for name, load in settings.items():
        with closing(Keeping(bench, load)) as keeping:
            turn(partial(keeping.step, keeps=True), 4)()
            _cost(bench, name, keeping)
            if name == "8x32":
                _is_the_state(bench, keeping)
                _many(bench, keeping)


def _cost(bench: Bench, name: str, keeping: Keeping) -> None:
    keeping.meters.restart()
    acts = [turn(partial(keeping.step, keeps=keeps), _TURN) for keeps in (True, False)]
    pairs = bench.pairs_ms((acts[0], acts[1]), bench.sized(10, 1))
    num_taken = _TURN * len(pairs)
    copy_ms = 1000 * keeping.meters.seconds()["snapshot"] / num_taken
    bench.on_gpu.at_most(f"{name}: a snapshot, copy and checksum", copy_ms, 20, "ms")
    more = 100 * (ratio(pairs) - 1)
    bench.on_gpu.at_most(f"{name}: one after each step makes steps longer by", more, 1, "%")


def _is_the_state(bench: Bench, keeping: Keeping) -> None:
    """The step that the snapshot is taken during must not be seen in it."""
    keeping.save()
    state = keeping.state()
    keeping.step(keeps=False)
    pieces = [piece for path in keeping.room.pieces() if (piece := read_piece(path)) is not None]
    newest = max(pieces, key=lambda piece: piece.label.step)
    differ = [
        name for name, tensor in state.items() if not torch.equal(newest.tensor(name), tensor)
    ]
    text = f"{len(differ)} of {len(state)} tensors differ"
    bench.said.holds("a snapshot is the state", not differ and bool(state), text, "0 differ")


def _many(bench: Bench, keeping: Keeping) -> None:
    before = accelerator.stream.cache_info().misses
    for _ in range(bench.sized(_MANY, 3)):
        keeping.step(keeps=True)
    made = accelerator.stream.cache_info().misses - before
    bench.on_gpu.at_most(f"streams that {_MANY} snapshots make", made, 0)
