"""Copies this rank's share of the state to the node's memory after each step, during the next one.

    step s        ... sync | optimizer |
    step s+1                           | forward | backward ....... last bucket | sync | optimizer |
    this thread                        | [1] copy, seal | [2] all of the bundle have |^
                                                                             [3] waits for both |
Parameters do not change before the optimizer of step s+1, which comes after its sync. The last
bucket of that sync leaves only when every rank of the bundle has sealed its share of step s. So a
rank that has finished step s+1 knows that all ranks of all stages have step s (I8): each bundle had
put its last bucket in. That is when the slot of step s-1 is written over; two slots suffice.
"""

from __future__ import annotations

import concurrent.futures
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bundlerun.launcher.errors import CheckpointError, NodeError
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.workers.device.host_memory import Registration
from bundlerun.workers.device.interface import Event
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.pace import Adapted, Pace
from bundlerun.workers.snapshot.piece import (
    Label,
    Layout,
    SnapshotId,
    Spec,
    longest_first,
    split_by_bytes,
)
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import Slot, read_label

log = logging.getLogger(__name__)

Total = Callable[[Sequence[float]], Sequence[float]]
"""Adds up numbers over all ranks; collective."""

_LAST_COPY_S = 5.0
"""How long a rank that ends waits for the copy under way: it may be the only one of that step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What the snapshots of a rank are of.

    Args:
        state: gives the whole state of this rank's stage by name; asked before the next forward
            begins, and copied in a thread of its own while that runs.
        feedback: gives what the exchange of this rank keeps from step to step, by name.
        situation: what the feedback is for; short.
        changed: a mark after the last change of the state on a GPU; None: all that it was given.
    """

    state: Callable[[], Mapping[str, Tensor]]
    feedback: Callable[[], Mapping[str, Tensor]] = dict
    situation: str = ""
    changed: Callable[[], Event | None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterStep:
    """What became of a step, and of the steps to come.

    Args:
        is_kept: a snapshot of it is under way.
        adapted: how often there is one from now on; None: as before.
    """

    is_kept: bool
    adapted: Adapted | None = None


class Snapshots:
    """The snapshots of one rank; the gate of its sync (`workers.sync.gradient_sync.Gate`).

    Args:
        session: this rank's place in the round.
        room: where pieces go.
        source: of what.
        meters: gets the time of the copy, and of what waits for it.
        pace: says after which steps.
        restored: the snapshot that this round began with, if one.
    """

    def __init__(
        self,
        session: Session,
        room: SnapshotRoom,
        *,
        source: Source,
        meters: Meters,
        pace: Pace,
        restored: SnapshotId | None = None,
    ) -> None:
        topology, place = session.topology, session.place
        # Replicas of a stage on one node hold the same numbers: each copies a part of them.
        mates = topology.collect_ranks(place.stage, place.node)
        self._session = session
        self._room = room
        self._source = source
        self._meters = meters
        self._pace = pace
        self._restored = restored
        self._share, self._num_shares = mates.index(place.rank), len(mates)
        role = f"node{place.node}-stage{place.stage}-{self._share}of{self._num_shares}"
        self._pieces = _Turns(room, session.token, role, session.device)
        self._kept = _Turns(room, session.token, f"{role}-feedback", session.device)
        # A group of its own: the thread sums in it while the bundle's other groups are in use.
        self._bundle = session.groups.snapshot
        self._helper = Helper("snapshot", session.device)
        self._fed: Future[float] | None = None
        self._copied: Future[float] | None = None
        self._agreed: Future[None] | None = None
        self._waited = 0.0
        self._num_saved = 0
        self._newest = -1 if restored is None else restored.step
        """The last step that there is a snapshot of, or is to be."""
        self._is_off = False

    def after_step(self, progress: Progress, step_s: float, total: Total) -> AfterStep:
        """Begins a snapshot where one is due, and at times finds out how often that should be.

        Collective: every active rank; see `save`.

        Args:
            progress: of the run, with the step that is finished.
            step_s: what the step took, seconds.
            total: adds up numbers over all ranks.
        """
        is_kept = self._pace.is_due(progress.step)
        self.save(progress)
        if not self._pace.stepped(step_s):
            return AfterStep(is_kept=is_kept)
        cost_s, all_step_s = total(self._pace.measured())
        return AfterStep(is_kept=is_kept, adapted=self._pace.review(cost_s, all_step_s))

    def save(self, progress: Progress) -> None:
        """Begins to copy the state as it is, where this step is to be kept.

        Call it when a step is finished, and change nothing of the state before the sync of the
        next has gone through `before_first` and `before_last`.
        """
        if self._pace.is_due(progress.step):
            self._begin(progress)

    def _begin(self, progress: Progress) -> None:
        self._num_saved += 1
        self._newest = progress.step
        # Named here and not in the thread: the next forward lends buffers of batch norms.
        tensors = self._named_state()
        device, changed = self._session.device, self._source.changed()
        copy = DeviceCopy.after_now(device) if changed is None else DeviceCopy(device, changed)
        # [1] The feedback comes first: the first bucket of the next sync changes it.
        self._fed = self._helper.add(partial(self._copy_feedback, progress, copy, self._num_saved))
        self._copied = self._helper.add(partial(self._copy_share, progress, copy, tensors))
        # [2] Queued after the copy in the same thread, so whoever agrees has sealed.
        self._agreed = self._helper.add(self._agree)

    def _named_state(self) -> Mapping[str, Tensor]:
        start = time.perf_counter()
        try:
            return self._source.state()
        except CheckpointError as exc:
            self._turn_off(exc)
            # The bundle waits in `_agree`: the jobs are queued as usual, and copy nothing.
            return {}
        finally:
            self._waited += time.perf_counter() - start

    def before_first(self) -> None:
        """Returns once the first bucket may leave: it changes what the exchange keeps."""
        if self._fed is not None:
            self._wait(self._fed)

    def before_last(self) -> None:
        """Returns once the last bucket may leave: all of the bundle have the previous step (I8).

        Raises:
            RuntimeError: another rank of the bundle is gone.
        """
        if self._fed is None or self._copied is None or self._agreed is None:
            return
        # [3] In the order in which the thread does them.
        for answer in (self._fed, self._copied, self._agreed):
            self._wait(answer)
        if not self._is_off:
            self._pace.taken(self._fed.result() + self._copied.result() + self._waited)
        self._fed = self._copied = self._agreed = None
        self._waited = 0.0

    def save_last(self, progress: Progress) -> bool:
        """Keeps the last state of the run, due or not; whether this rank has its share of it.

        Collective: the bundle, once all ranks of all bundles have come out of `before_last`.
        """
        # The pace may have left this step out, and there is no later one.
        if self._newest != progress.step:
            self._begin(progress)
            self.before_last()
        return not self._is_off

    def close(self) -> None:
        """Waits a moment for the copy under way; what is sealed stays."""
        # A rank that ends by an error may be the only one that has finished this step.
        answers: tuple[Future[Any] | None, ...] = (self._fed, self._copied, self._agreed)
        under_way = [answer for answer in answers if answer is not None]
        if not concurrent.futures.wait(under_way, _LAST_COPY_S).not_done:
            for turns in (self._pieces, self._kept):
                turns.close()

    def finish_copy(self, limit_s: float) -> None:
        """Waits until this rank's copy is whole, at most `limit_s` seconds; asks no other rank."""
        under_way = [answer for answer in (self._fed, self._copied) if answer is not None]
        concurrent.futures.wait(under_way, limit_s)

    def _wait(self, answer: Future[float] | Future[None]) -> None:
        if answer.done():
            answer.result()
            return
        start = time.perf_counter()
        with self._meters.phase("snapshot_wait"):
            answer.result()
        self._waited += time.perf_counter() - start

    # --- in the thread

    def _copy_feedback(self, progress: Progress, copy: DeviceCopy, num_saved: int) -> float:
        """Returns the seconds that it took from the cores that the ranks compute on."""
        with self._meters.phase("snapshot"):
            start = time.thread_time()
            # One rank clears up for its node; two would race for the same names.
            if self._session.place.local_rank == 0:
                self._forget_before(num_saved)
            tensors = self._source.feedback()
            # Of use to this rank only, in this layout, so it is not shared out.
            if tensors and not self._is_off:
                self._write(
                    self._kept, progress, tensors, len(tensors), copy, self._source.situation
                )
            return time.thread_time() - start

    def _copy_share(
        self, progress: Progress, copy: DeviceCopy, tensors: Mapping[str, Tensor]
    ) -> float:
        """Returns the seconds that it took from the cores that the ranks compute on."""
        with self._meters.phase("snapshot"):
            start = time.thread_time()
            if not self._is_off:
                sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
                mine = split_by_bytes(sizes, self._num_shares)[self._share]
                own = {name: tensors[name] for name in mine}
                self._write(self._pieces, progress, own, len(tensors), copy)
            # A sign of life for other runs, which sweep what nobody has touched for long.
            self._room.touch()
            return time.thread_time() - start

    def _write(
        self,
        turns: _Turns,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        num_names: int,
        copy: DeviceCopy,
        situation: str = "",
    ) -> None:
        label = Label(
            step=progress.step,
            token=self._session.token,
            stage=self._session.place.stage,
            num_stages=self._session.topology.num_stages,
            num_names=num_names,
            progress=progress,
            situation=situation,
        )
        try:
            turns.write(label, tensors, copy)
        except (OSError, NodeError, CheckpointError) as exc:
            self._turn_off(exc)

    def _turn_off(self, why: Exception) -> None:
        """Continues without: no state of these steps is whole any more, so none will be taken."""
        if not self._is_off:
            reason = getattr(why, "strerror", None) or why
            log.warning(
                "no more snapshots: %s; a restart continues from the newest checkpoint", reason
            )
        self._is_off = True

    def _agree(self) -> None:
        """Returns once all ranks of the bundle have come here."""
        if self._bundle is not None:
            # No numbers are needed: a sum that is complete says that all have come.
            self._bundle.all_reduce(torch.zeros(1)).wait()

    def _forget_before(self, num_saved: int) -> None:
        """Removes pieces of earlier rounds that nobody will want any more; by one rank of the node.

        With a first step finished, all have what this round began with. With the next snapshot's
        step finished, all have the first one of this round.
        """
        if num_saved > 2:
            return
        for path in self._room.pieces():
            # Pieces of this round are the slots that are being written.
            if path.name.startswith(f"{self._session.token}."):
                continue
            # Should a rank die now, this is still the newest whole step.
            if num_saved == 1 and self._restored is not None:
                found = read_label(path)
                if found is not None and found[0].id == self._restored:
                    continue
            path.unlink(missing_ok=True)


class _Turns:
    """Two slots, written alternately.

    Args:
        room: where they are made.
        token: the round.
        role: of this rank in the round.
        device: where the tensors are.
    """

    def __init__(self, room: SnapshotRoom, token: str, role: str, device: torch.device) -> None:
        self._room = room
        self._token = token
        self._role = role
        self._device = device
        self._slots: list[Slot | None] = [None, None]
        self._registered: list[Registration | None] = [None, None]
        self._turn = 0

    def write(self, label: Label, tensors: Mapping[str, Tensor], copy: DeviceCopy) -> None:
        """Writes a piece over the older one.

        Raises:
            OSError: there is no room.
            CheckpointError: none for the label.
        """
        sizes = {name: t.numel() * t.element_size() for name, t in tensors.items()}
        specs = {name: Spec.of(tensors[name]) for name in longest_first(sizes)}
        slot = self._slots[self._turn]
        # The optimizer's state appears with its first step: the layout of a slot may change once.
        if slot is None or slot.layout.specs != specs:
            if slot is not None:
                self._end_registration(self._turn)
                # First, as both may not fit at the same time.
                slot.remove()
            self._slots[self._turn] = None
            role = f"{self._role}-{'ab'[self._turn]}"
            # So that the room can refuse now if the second slot will not fit either.
            left = self._slots.count(None)
            layout = Layout.of(specs)
            slot = self._room.make_slot(self._token, role, layout, num_slots=left)
            self._slots[self._turn] = slot
            self._registered[self._turn] = copy.prepare(slot)
        copy.write(slot, label, tensors)
        self._turn = 1 - self._turn

    def close(self) -> None:
        """Takes the memory back from the GPU; the pieces stay."""
        for turn in range(len(self._slots)):
            self._end_registration(turn)

    def _end_registration(self, turn: int) -> None:
        registered, self._registered[turn] = self._registered[turn], None
        if registered is not None:
            registered.end()
