"""Who hears how a run goes: the agent from each of its ranks, the world from one of all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from bundlerun.launcher.run_folder.events import EventName
from bundlerun.launcher.run_folder.outcome import Outcome
from bundlerun.launcher.why.pace_words import link_text
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.life.liveness import Liveness
from bundlerun.workers.report.measures import Shared
from bundlerun.workers.report.reporter import Reporter
from bundlerun.workers.shares.links import LinkNews
from bundlerun.workers.shares.shares import News
from bundlerun.workers.shares.words import change_text, found_text
from bundlerun.workers.step import StepSums

log = logging.getLogger(__name__)


class Audience:
    """Passes on what happens to whoever is to hear of it from this rank.

    Args:
        session: this rank's place.
        life: what the agent sees.
        reporter: tells the world; None on all ranks but one.
    """

    def __init__(self, session: Session, life: Liveness, reporter: Reporter | None) -> None:
        self._session = session
        self._life = life
        self._reporter = reporter

    def start_epoch(self, epoch: int, first_step: int) -> None:
        """An epoch begins, or resumes at a step."""
        if self._reporter is not None:
            self._reporter.start_epoch(epoch, first_step)

    def finished(self, step: int) -> None:
        """A step is finished here, and the one before it on all ranks: its sums say so."""
        self._life.finished(step)
        if self._reporter is not None:
            # This step's sums needed all ranks, so all have finished the step before (I8).
            self._reporter.all_finished()

    def step(self, row: Mapping[str, Any], *, is_kept: bool) -> None:
        """The result of a step, and whether a snapshot of it is under way."""
        if self._reporter is not None:
            self._reporter.step(row, is_kept=is_kept)

    def snapshot_steps(self, every: int, share: float) -> None:
        """How often snapshots are taken from now on, and what one takes of a step."""
        if self._reporter is not None:
            self._reporter.snapshot_steps(every, share)

    def shares(self, news: News) -> None:
        """Other shares, a rank that is slow: to the console and to the event log."""
        if self._reporter is None:
            return
        if news.change is not None:
            nodes = [node.name for node in self._session.nodes]
            text = change_text(news.change, self._session.topology, nodes)
            log.info("%s", text)
            self._life.events.note("shares", {"step": news.change.first_step, "text": text})
        if news.found is not None:
            text = found_text(news.found)
            log.log(logging.INFO if news.found.slow is None else logging.WARNING, "%s", text)
            event: EventName = "no slow rank" if news.found.slow is None else "slow rank"
            self._life.events.note(event, {"step": news.found.end_step, "text": text})
        if news.link is not None:
            self._tell_link(news.link)

    def _tell_link(self, news: LinkNews) -> None:
        if news.link is None:
            text = "all links between nodes are alike again"
            log.info("%s", text)
            self._life.events.note("no bad link", {"text": text})
            return
        text = link_text(news.link)
        log.warning("%s", text)
        pair = {"from": news.link.source, "to": news.link.to}
        self._life.events.note("bad link", {**pair, "text": text})

    def agree_to_stop(self) -> None:
        """All ranks stop after this step, and their next start would, too."""
        self._life.agree_to_stop()

    def end_epoch(self, epoch: int, step: int, shared: Shared) -> None:
        """The epoch's training is over."""
        if self._reporter is not None:
            self._reporter.end_epoch(epoch, step, shared)

    def add_phases(self, phases: Mapping[str, float]) -> None:
        """What comes after it took that long, likewise."""
        if self._reporter is not None:
            self._reporter.add_phases(phases)

    def tell_why(self, epoch: int, step: int, end: Mapping[str, float]) -> None:
        """What the epoch's time went for; what came after its training took that long."""
        if self._reporter is not None:
            self._reporter.tell_why(epoch, step, end)

    def validated(self, epoch: int, step: int, sums: StepSums) -> None:
        """The result of a validation."""
        if self._reporter is not None:
            self._reporter.validated(epoch, step, sums)

    def finish(self, outcome: Outcome, *, is_as_asked: bool) -> None:
        """The run is over, or stops; see `Reporter.finish`."""
        if self._reporter is not None:
            self._reporter.finish(outcome, is_as_asked=is_as_asked)
