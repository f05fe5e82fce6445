"""What one rank does against silent corruption, step by step, and what it does where there is some.

    step        [1] its slice of the state, summed, rides along with the gradients
                [2] sums that differ: who differs, in what
    found       [3] a mark in the run folder: states after this are not gone on from
                [4] all replicas end with the same words; the next round goes back

A state counts as verified once all of it has been compared since, and the steps that other stages
may be behind are done, too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.corruption.compared import are_compared
from bundlerun.launcher.corruption.marks import CorruptionMark, write_mark
from bundlerun.launcher.corruption.quarantine import leave_out
from bundlerun.launcher.errors import CorruptionError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.verify.redo import ACTIVATION, GRADIENT, Redo, redo_steps
from bundlerun.workers.verify.replica_check import (
    Finding,
    ReplicaCheck,
    SumOfCopies,
    check_of_copies,
)
from bundlerun.workers.verify.slices import entries_of, steps_of

log = logging.getLogger(__name__)

LATE_STEPS = 2
"""That another stage may be behind when one finds something, and one to be sure."""


class Sums(Protocol):
    """What a rank sums."""

    @property
    def shared(self) -> Sequence[SumOfCopies]:
        """With other stages: one for each set of these."""
        ...

    def all_sum(self, values: Tensor) -> Tensor:
        """Over the replicas of the stage, outside a step."""
        ...

    def take_first(self, tensors: Sequence[Tensor]) -> None:
        """Makes them those of the first replica."""
        ...


class Verifier:
    """Looks at the state of one rank.

    Args:
        config: of the run.
        session: this rank's place.
        stage: of this rank.
        optimizer: of its parameters.
        averages: gives those of its parameters.
        arithmetic: in which it computes.
        sync: sums over the replicas of the stage.
        is_quiet: whether no forward writes to the state.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        stage: nn.Module,
        optimizer: Optimizer,
        averages: Callable[[], Mapping[str, Tensor]],
        arithmetic: Arithmetic,
        sync: Sums,
        is_quiet: Callable[[], bool],
    ) -> None:
        self._session = session
        self._paths = RunPaths(Path(config.run_dir))
        self._all_sum = sync.all_sum
        widths, num_bundles = session.topology.shape.widths, session.topology.num_bundles
        # The same on all ranks, whatever replicas their own stage has.
        self._steps = steps_of(config) if are_compared(widths, num_bundles) else 0
        self._ranks = session.topology.stage_ranks(session.place.stage)
        self._replica = self._ranks.index(session.place.rank)
        device = session.device
        entries = lambda: list(entries_of(stage, optimizer, averages()))  # noqa: E731
        self._replicas = ReplicaCheck(entries, len(self._ranks), device, self._steps)
        self._copies = [(each, check_of_copies(each, device, self._steps)) for each in sync.shared]
        self._period = redo_steps(config, session.topology) if self._steps else 0
        self.redo = Redo(
            config,
            stage,
            arithmetic,
            num_replicas=len(self._ranks),
            replica=self._replica,
            every=self._period,
            all_sum=sync.all_sum,
            take_first=sync.take_first,
            is_quiet=is_quiet,
        )
        self._redone = 0
        """Steps that were done when a micro-batch was the same on all replicas."""
        self._is_whole = config.verify_replicas
        self._is_quarantine = config.quarantine
        self._era = 0
        self._begin = 0
        """Finished steps at which this round began."""
        self._verified = 0
        """As this round began."""

    def begins(self, era: int, step: int, verified: int) -> None:
        """Says where this round goes on.

        Args:
            era: of the run, see `launcher.corruption.marks`.
            step: finished steps.
            verified: those of the newest state that was verified before.
        """
        self._era, self._begin, self._verified = era, step, verified
        self._redone = verified

    @property
    def verified(self) -> int:
        """Finished steps of the newest state that was verified as this round began."""
        return self._verified

    @property
    def keep_every(self) -> int:
        """Steps between states that are worth keeping until they are verified; 0: nobody looks."""
        return self._period and self._period + LATE_STEPS

    def verified_at(self, step: int) -> int:
        """Finished steps of the newest state that counts as verified when `step` are done."""
        if not self._steps:
            return step  # nobody looks, so there is nothing better to go back to
        newest = step - self._steps - LATE_STEPS
        return newest if newest >= self._begin else self._verified

    def begin_step(self, step: int) -> None:
        """Call it before the forwards of a step."""
        self.redo.begin(step)

    def write(self, comparison: Tensor, step: int) -> None:
        """[1] Puts what this rank has into the sums of a step, which are zeros."""
        self._replicas.write(comparison, step)
        for each, check in self._copies:
            check.write(each.extra, step)

    def check(
        self, comparison: Sequence[float], copies: Sequence[Sequence[float]], step: int
    ) -> None:
        """[2] Looks at what has become of it, before anything follows from the step.

        Raises:
            CorruptionError: replicas differ; on all of them alike.
        """
        if self._replicas.is_on and not self._replicas.is_equal(comparison):
            finding = self._replicas.name(self._replica, self._all_sum)
            self._end(finding, step, f"before step {step}")
        for (each, check), sums in zip(self._copies, copies, strict=True):
            if check.is_on and not check.is_equal(sums):
                finding = check.name(self._place_among(each), each.all_sum)
                self._end_copies(each, finding, step, f"before step {step}")
        if self.redo.is_due(step):
            self._redo(step)

    def _redo(self, step: int) -> None:
        finding = self.redo.compare(step)
        if finding is None:
            self._redone = step
            return
        self._end(finding, step, f"in what they make of one micro-batch of step {step}")

    def verify(self, step: int) -> None:
        """Compares all of the state, where --verify-replicas asks for that.

        Collective: all replicas of the stage, and of those that it shares with; outside a step.

        Raises:
            CorruptionError: replicas differ; on all of them alike.
        """
        if not self._is_whole:
            return
        self._look(step, f"after step {step}")
        for each, check in self._copies:
            finding = check.verify(self._place_among(each), each.all_sum)
            if finding is not None:
                self._end_copies(each, finding, step, f"after step {step}")

    def look_at_all(self, step: int) -> None:
        """Compares all of the state of a stage, whatever the options; collective, as `verify`."""
        if self._steps:
            self._look(step, f"in step {step}, which has no loss that is a number,")

    def _look(self, step: int, when: str) -> None:
        if len(self._ranks) > 1:
            finding = self._replicas.verify(self._replica, self._all_sum)
            if finding is not None:
                self._end(finding, step, when)

    def _holders(self, each: SumOfCopies) -> tuple[int, ...]:
        """All ranks that have copies of the same."""
        topology = self._session.topology
        return tuple(sorted(r for stage in each.stages for r in topology.stage_ranks(stage)))

    def _place_among(self, each: SumOfCopies) -> int:
        return self._holders(each).index(self._session.place.rank)

    # --- what was found

    def _end_copies(self, each: SumOfCopies, finding: Finding, step: int, when: str) -> NoReturn:
        stages = " and ".join(map(str, each.stages))
        judged, nodes = self._judged(finding, self._holders(each))
        text = (
            f"the copies of what stages {stages} share differ {when} in {finding.name!r}: "
            f"{judged}; the optimizer may treat a parameter by which others its stage has"
        )
        self._raise(finding, step, text, nodes)

    def _end(self, finding: Finding, step: int, when: str) -> NoReturn:
        judged, nodes = self._judged(finding, self._ranks)
        text = (
            f"the replicas of stage {self._session.place.stage} differ {when} in "
            f"{finding.name!r} ({finding.kind}): {judged}"
        )
        self._raise(finding, step, text, nodes)

    def _judged(self, finding: Finding, ranks: Sequence[int]) -> tuple[str, tuple[str, ...]]:
        """Who is wrong, in words, and the nodes of these."""
        places, nodes = self._session.topology.places, self._session.nodes
        wrong = [places[ranks[index]] for index in finding.wrong]
        names = [nodes[place.node].name if nodes else str(place.node) for place in wrong]
        others = len(ranks) - len(wrong)
        if not wrong:
            return f"which of the {others} is wrong, only three or more could tell", ()
        who = " and ".join(f"rank {p.rank} on node {n}" for p, n in zip(wrong, names, strict=True))
        return f"{who} has other bits than the other {others}", tuple(dict.fromkeys(names))

    def _raise(self, finding: Finding, step: int, text: str, culprits: tuple[str, ...]) -> NoReturn:
        verified = self.verified_at(step)
        if finding.kind in (ACTIVATION, GRADIENT):
            # Its gradients have been in the sums since the last time that all computed the same.
            verified = min(verified, self._redone)
        # Not all that there are: then nobody would be left to go on.
        is_some = len(culprits) < len(self._session.nodes)
        left_out = culprits if self._is_quarantine and is_some else ()
        mark = CorruptionMark(
            era=self._era,
            stage=self._session.place.stage,
            step=step,
            verified=verified,
            kind=finding.kind,
            name=finding.name,
            culprits=culprits,
            text=text,
        )
        # [3] Before any rank ends: what follows goes by it.
        try:
            write_mark(self._paths, mark)
            for name in left_out:
                leave_out(self._paths.left_out, name, text)
        except OSError as exc:
            log.error("cannot write to %s: %s", self._paths.corruption, exc.strerror)
        # Who comes here has written it. Nobody leaves before: others would see a lost rank.
        with suppress(RuntimeError):
            self._all_sum(torch.zeros(1, dtype=torch.float64, device=self._session.device))
        # [4] One of them tells of it, which is not the one that is wrong.
        right = set(range(len(self._ranks))) - set(finding.wrong)
        tells = self._replica == min(right, default=0)
        then = f"the run goes back to step {verified} or before, which was verified"
        if left_out:
            then += f"; {' and '.join(left_out)} takes no part any more"
        details = {**asdict(mark), "left_out": left_out, "why": f"{text}; {then}"}
        raise CorruptionError(
            f"{text}; {then}. If this comes again: the memory or the device works wrongly, or the "
            "model writes to it where nobody sees it (through .data, or outside of its forward); "
            "--verify-replicas looks at all of it after each step",
            details if tells else None,
        )
