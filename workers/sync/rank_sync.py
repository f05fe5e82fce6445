"""All that one rank sums in a step: with the replicas of its stage, and with whom it shares.

    stage 0, replicas      |== own buckets ==|          |
    stage 2, replicas      |== own buckets ==|          |   each during its last backward
    0 and 2, all of both                     |= shared =|   a parameter that both use

What stages share leaves last, when a rank has begun all else of the step: stage 2 has its part of
such a gradient long before stage 0, which waits for stage 2's last message. So the order is one on
all ranks (I6, I17). Nothing is lost: the gradient of what the first layers use is the last of all.

Each set of stages sums over all its ranks at once, as if they were replicas of one stage; what is
shared crosses between nodes once, not once per stage. The sums are equal on all to the bit, so
each stage's optimizer makes the same step from the same state, and nothing is sent after it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn
from torch.nn import Parameter

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.bucket_size import bucket_bytes
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.splits.shared import shared_parameters
from bundlerun.splits.stage import chunk_parameters
from bundlerun.workers.device import numbers
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.sync.calibrate import Choice, read_choice
from bundlerun.workers.sync.gradient_sync import Gate, GradientSync, SyncSettings
from bundlerun.workers.sync.schemes import ways_of
from bundlerun.workers.sync.short.kept_back import KeptBack

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedSum:
    """What some stages share, as one rank of them sums it.

    Args:
        stages: ascending; this rank's is one of them.
        copies: this rank's, by their first names in the model, in its order.
        num_holders: ranks of all these stages.
        sync: over all these ranks.
    """

    stages: tuple[int, ...]
    copies: Mapping[str, Parameter]
    num_holders: int
    sync: GradientSync

    @property
    def extra(self) -> Tensor:
        """Numbers that ride along, for whoever compares the copies."""
        extra: Tensor = self.sync.extra
        return extra

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of float64 `values` over all holders, outside a step; collective for these."""
        return self.sync.all_sum(values)


class RankSync:
    """The sums of one rank, as `GradientSync` in all that is not said otherwise.

    Args:
        own: over the replicas of its stage.
        shared: in an order that all ranks have.
        is_serial: see `Ways`.
    """

    def __init__(
        self, own: GradientSync, shared: Sequence[SharedSum] = (), *, is_serial: bool = False
    ) -> None:
        self._own = own
        self.shared = tuple(shared)
        self._all = (own, *(each.sync for each in shared))
        self._is_serial = is_serial
        self.extra = own.extra

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        session: Session,
        stage: nn.Module,
        *,
        num_extra: int,
        num_shared_extra: int,
        meters: Meters,
    ) -> RankSync:
        """That of a rank.

        Collective: every active rank, at the same point among the groups that it makes.

        Args:
            config: of the run.
            session: this rank's place.
            stage: its part of the model, on its device.
            num_extra: numbers that ride along with the sums over the replicas of the stage.
            num_shared_extra: with each other sum.
            meters: gets the times.
        """
        copies = shared_parameters(stage)
        held = set(copies.values())
        chunks = chunk_parameters(stage, config.chunks)
        kept = RunPaths(Path(config.run_dir)).sync_choice(session.place.stage)
        own = GradientSync(
            [[p for p in chunk if p not in held] for chunk in chunks],
            num_extra=num_extra,
            ways=ways_of(config, session.arrival),
            groups=session.groups.legs,
            device=session.device,
            settings=_settings(config, session, read_choice(kept) if session.is_writer else None),
            meters=meters,
        )
        rank = config.exchange_form.rank
        if rank and session.is_writer and not own.has_matrices(rank):
            log.warning(
                "stage %d: --exchange %s shortens nothing here: no parameter is a matrix that two "
                "of rank %d would be shorter than", session.place.stage, config.exchange, rank,
            )  # fmt: skip
        # By sets of stages in ascending order: two ranks make the groups that both are in alike.
        sets = sorted({shared.stages for shared in copies})
        ways = {stages: ways_of(config, session.arrival, stages) for stages in sets}
        members = {m for each in ways.values() for m in each.members}
        made = session.groups.add_legs(session.arrival.network, members)
        shared = [
            SharedSum(
                stages=stages,
                copies=(
                    own_copies := {s.names[0]: p for s, p in copies.items() if s.stages == stages}
                ),
                num_holders=len(ways[stages].replicas.ranks),
                sync=GradientSync(
                    [list(own_copies.values())],
                    num_extra=num_shared_extra,
                    ways=ways[stages],
                    groups={m: made[m] for m in ways[stages].members},
                    device=session.device,
                    settings=_settings(config, session, None),
                    meters=meters,
                ),
            )
            for stages in sets
        ]
        is_serial = any(each.is_serial for each in ways.values())
        return cls(own, shared, is_serial=is_serial)

    @property
    def choice(self) -> Choice | None:
        """Of the stage; what is shared is never measured, as stages would have to agree."""
        return self._own.choice

    def hold(self, gate: Gate) -> None:
        """From the next step on, `gate` decides when the stage's buckets, and then all, leave."""
        self._own.hold(gate)

    @property
    def kept_back(self) -> Sequence[KeptBack]:
        """What rounding keeps back: of the stage's own sum, then of the shared ones."""
        return [sync.kept_back for sync in self._all]

    @property
    def feedback_situation(self) -> str:
        """A short text for the rank and layout of what is kept back, leg by leg."""
        texts = [sync.feedback_situation for sync in self._all]
        return hashlib.sha256(" ".join(texts).encode()).hexdigest()[:16]

    def drop_feedback(self) -> None:
        """Forgets the rounding errors so far; call it between `finish` and the next step."""
        for sync in self._all:
            sync.kept_back.drop()

    def start_step(self, *, is_exact: bool = False) -> None:
        """Clears gradients and all that is extra."""
        for sync in self._all:
            sync.start_step(is_exact=is_exact)

    def arm(self, own_chunk: int) -> None:
        """Says that the next backward of a chunk is its last."""
        self._own.arm(own_chunk)

    def finish(self) -> None:
        """Waits for all sums.

        Collective: all replicas of the stage, and all ranks of the stages that it shares with.

        Raises:
            RuntimeError: another rank did not answer in time, or died.
        """
        if self._is_serial:
            # A thread of each sum begins its operations: all of one before any of the next.
            for sync in self._all:
                sync.finish()
            return
        for sync in self._all:
            sync.launch()
        for sync in self._all:
            sync.take()

    def finish_small(self) -> set[Parameter]:
        """In place of `finish`: waits for `extra`, and for all that is shared with other stages.

        Collective: as `finish`; see `Coming.take_small`. `start_read_small` has to follow.

        Returns:
            The parameters whose sums are to come.
        """
        for sync in self._all:
            sync.launch()
        to_come: set[Parameter] = self._own.take_small()
        for each in self.shared:
            each.sync.take()
        return to_come

    def start_read_small(self, *vectors: Tensor) -> Callable[[], list[list[float]]]:
        """As `start_read`, after `finish_small`."""
        own = numbers.start_read(vectors)
        shared = [each.sync.start_read(each.extra) for each in self.shared]
        return lambda: own() + [found for reading in shared for found in reading()]

    @property
    def has_replicas(self) -> bool:
        """Whether the stage has any others: else there is nothing to wait for."""
        return self._own.has_replicas

    @property
    def shared_parameters(self) -> list[Parameter]:
        """What this rank's stage shares with others."""
        return [p for each in self.shared for p in each.copies.values()]

    @property
    def is_under_way(self) -> bool:
        """See `Coming.is_under_way`."""
        return self._own.coming.is_under_way

    def take(self) -> None:
        """Waits for all that `finish_small` has left under way."""
        self._own.coming.take_rest()

    def take_next(self) -> list[Parameter]:
        """See `Coming.take_next`."""
        return self._own.coming.take_next()

    def release(self, parameters: Sequence[Parameter]) -> None:
        """See `Coming.release`."""
        self._own.coming.release(parameters)

    @property
    def headway(self) -> int:
        """See `GradientSync.headway`."""
        return self._own.headway

    def lead(self, headway: float) -> None:
        """See `GradientSync.lead`."""
        self._own.lead(headway)

    def start_read(self, *vectors: Tensor) -> Callable[[], list[list[float]]]:
        """Begins to copy the numbers of `vectors`, and those that came with each shared sum.

        Gives what waits for them: first the ones, then the others.
        """
        own = self._own.start_read(*vectors)
        shared = [each.sync.start_read(each.extra) for each in self.shared]
        return lambda: own() + [found for reading in shared for found in reading()]

    @property
    def is_all_used(self) -> bool:
        """Whether it is known without a look at other ranks which parameters have a gradient."""
        return all(sync.is_all_used for sync in self._all)

    def all_sum(self, values: Tensor) -> Tensor:
        """The sum of float64 `values`, of shape (n,), over the replicas of the stage."""
        return self._own.all_sum(values)

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes `tensors` those of the first replica, and what is shared that of its first holder.

        Collective: as `finish`, outside a step.
        """
        self._own.copy_from_first(tensors)
        for each in self.shared:
            each.sync.copy_from_first([p.detach() for p in each.copies.values()])

    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes `tensors` those of the first replica of the stage.

        Collective: all replicas of the stage, outside a step.
        """
        self._own.copy_from_first(tensors)

    def close(self) -> None:
        """Ends the threads."""
        for sync in self._all:
            sync.close()


def _settings(config: TrainConfig, session: Session, known: Choice | None) -> SyncSettings:
    topology, backend = session.topology, session.arrival.network.backend
    return SyncSettings(
        bucket_bytes=bucket_bytes(config.bucket_mb, topology.num_nodes, backend),
        form=config.exchange_form,
        timeout_s=config.timeout_s,
        situation=(
            f"{topology.shape.widths} on {topology.devices_per_node}, {config.exchange_form}"
        ),
        known=known,
    )
