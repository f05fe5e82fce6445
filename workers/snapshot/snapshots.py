"""Copies this rank's share of the state to the node's memory after each step, during the next one.

    step s        ... sync | optimizer |
    step s+1                           | forward | backward ....... last bucket | sync | optimizer |
    this thread                        | [1] copy, seal | [2] all of the bundle have |^
                                                                             [3] waits for both |
Parameters do not change before the optimizer of step s+1, which comes after its sync. The last
bucket of that sync leaves only when every rank of the bundle has sealed its share of step s. So a
rank that has finished step s+1 knows that all ranks of all stages have step s (I8): each bundle had
put its last bucket in. That is when the slot of step s-1 is written over; two slots suffice.

Where a stage is on too few nodes, its piece goes to others besides (`Buddies`), behind what [2]
waits for. That may take longer than a step: the last bucket waits for it only in the step whose own
snapshot would write over what went before.
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
from bundlerun.workers.device.interface import Event
from bundlerun.workers.pipeline.helper import Helper
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.snapshot.buddies import Buddies, has_buddies
from bundlerun.workers.snapshot.device_copy import DeviceCopy
from bundlerun.workers.snapshot.keeping import Keeping, is_kept
from bundlerun.workers.snapshot.pace import Adapted, Pace
from bundlerun.workers.snapshot.piece import (
    Label,
    SnapshotId,
    split_by_bytes,
)
from bundlerun.workers.snapshot.room import SnapshotRoom
from bundlerun.workers.snapshot.slot import Slot, read_label
from bundlerun.workers.snapshot.turns import Turns

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
        era: of the run, see `launcher.corruption.marks`.
        verified_every: steps between states that are kept for going back to; 0: none are.
        verified: finished steps of the newest one that is verified, as this round begins.
        buddies: takes and sends copies of other nodes; None: such as tells nobody.
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
        era: int = 0,
        verified_every: int = 0,
        verified: int = 0,
        buddies: Buddies | None = None,
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
        self._era = era
        self._share, self._num_shares = mates.index(place.rank), len(mates)
        role = f"node{place.node}-stage{place.stage}-{self._share}of{self._num_shares}"
        self._pieces = Turns(room, session.token, role, session.device)
        self._kept = Turns(room, session.token, f"{role}-feedback", session.device)
        self._keeping = Keeping(room, session.token, role, session.device, verified_every)
        self._verified = verified
        # A group of its own: the thread sums in it while the bundle's other groups are in use.
        self._bundle = session.groups.snapshot
        self._buddies = buddies or Buddies(session, room)
        self._has_buddies = has_buddies(session)
        self._helper = Helper("snapshot", session.device)
        self._fed: Future[float] | None = None
        self._copied: Future[float] | None = None
        self._agreed: Future[None] | None = None
        self._sent: Future[float] | None = None
        """All of the bundle have their copies on other nodes, too."""
        self._step = -1 if restored is None else restored.step
        """The last step that is finished."""
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
        is_kept = self._is_due(progress.step)
        self.save(progress)
        if not self._pace.stepped(step_s):
            return AfterStep(is_kept=is_kept)
        cost_s, all_step_s = total(self._pace.measured())
        return AfterStep(is_kept=is_kept, adapted=self._pace.review(cost_s, all_step_s))

    @property
    def is_review_next(self) -> bool:
        """Whether the next `after_step` asks all ranks."""
        return self._pace.is_review_next

    def save(self, progress: Progress) -> None:
        """Begins to copy the state as it is, where this step is to be kept.

        Call it when a step is finished, and change nothing of the state before the sync of the
        next has gone through `before_first` and `before_last`.
        """
        self._step = progress.step
        if self._is_due(progress.step):
            self._begin(progress)

    def _is_due(self, step: int) -> bool:
        return self._pace.is_due(step) or self._keeping.is_due(step)

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
        self._buddies.tell_machines()
        if self._has_buddies:
            self._buddies.expect()
            self._sent = self._helper.add(self._send)

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
        if self._fed is not None and self._copied is not None and self._agreed is not None:
            # [3] In the order in which the thread does them.
            for answer in (self._fed, self._copied, self._agreed):
                self._wait(answer)
            if not self._is_off:
                self._pace.taken(self._fed.result() + self._copied.result() + self._waited)
            self._fed = self._copied = self._agreed = None
            self._waited = 0.0
        if self._is_due(self._step + 1):
            self._before_next()

    def _before_next(self) -> None:
        """Returns once the older slot may be written over: nodes enough have the newer."""
        if self._sent is None:
            return
        self._wait(self._sent)
        if not self._is_off:
            self._pace.adds(self._sent.result())
        self._sent = None
        self._waited = 0.0

    def save_last(self, progress: Progress) -> bool:
        """Keeps the last state of the run, due or not; whether this rank has its share of it.

        Collective: the bundle, once all ranks of all bundles have come out of `before_last`.
        """
        # The pace may have left this step out, and there is no later one.
        if self._newest != progress.step:
            self._before_next()
            self._begin(progress)
            self.before_last()
        self._before_next()
        return not self._is_off

    def has(self, step: int) -> bool:
        """Whether a snapshot of a step was begun; all ranks of the job agree."""
        return self._newest == step

    def piece(self) -> Callable[[], Slot | None]:
        """Gives this rank's piece of the last step, in another thread, once it is sealed there."""
        copied = self._copied

        def sealed() -> Slot | None:
            if copied is not None:
                copied.result()
            return None if self._is_off else self._pieces.newest

        return sealed

    def settle(self) -> None:
        """Returns once what is under way is where it is to be.

        Raises:
            RuntimeError: another rank of the bundle is gone.
        """
        self.before_first()
        self.before_last()
        self._before_next()

    def close(self) -> None:
        """Waits a moment for the copy under way; what is sealed stays."""
        # A rank that ends by an error may be the only one that has finished this step.
        answers: list[Future[Any] | None] = [self._fed, self._copied, self._agreed, self._sent]
        answers += self._buddies.under_way
        under_way = [answer for answer in answers if answer is not None]
        if not concurrent.futures.wait(under_way, _LAST_COPY_S).not_done:
            for turns in (self._pieces, self._kept, self._keeping):
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
                label = self._write(self._pieces, progress, own, len(tensors), copy)
                self._keeping.write(label, own, copy)
            # A sign of life for other runs, which sweep what nobody has touched for long.
            self._room.touch()
            return time.thread_time() - start

    def _write(
        self,
        turns: Turns,
        progress: Progress,
        tensors: Mapping[str, Tensor],
        num_names: int,
        copy: DeviceCopy,
        situation: str = "",
    ) -> Label:
        label = Label(
            step=progress.step,
            token=self._session.token,
            stage=self._session.place.stage,
            num_stages=self._session.topology.num_stages,
            num_names=num_names,
            progress=progress,
            situation=situation,
            era=self._era,
        )
        try:
            turns.write(label, tensors, copy)
        except (OSError, NodeError, CheckpointError) as exc:
            self._turn_off(exc)
        return label

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

    def _send(self) -> float:
        """Returns the seconds that copies to other nodes took from the links between them."""
        with self._meters.phase("snapshot"):
            start = time.perf_counter()
            paused_s = self._buddies.send(None if self._is_off else self._pieces.newest)
            took_s = time.perf_counter() - start - paused_s
        self._agree()
        return took_s

    def _forget_before(self, num_saved: int) -> None:
        """Removes pieces of earlier rounds that nobody will want any more; by one rank of the node.

        With a first step finished, all have what this round began with. With the next snapshot's
        step finished, all have the first one of this round.
        """
        self._keeping.forget(self._verified)
        if num_saved > 2:
            return
        for path in self._room.pieces():
            # Pieces of this round are the slots that are being written.
            if path.name.startswith(f"{self._session.token}.") or is_kept(path.name):
                continue
            # Should a rank die now, this is still the newest whole step.
            if num_saved == 1 and self._restored is not None:
                found = read_label(path)
                if found is not None and found[0].id == self._restored:
                    continue
            path.unlink(missing_ok=True)
