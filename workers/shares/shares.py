"""Who does how many micro-batches, looked at after each step of a run."""

from __future__ import annotations

from typing import NamedTuple

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.workers.data.feed import Feed
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.shares.balance import Balance, Change, is_memory_kept
from bundlerun.workers.shares.links import LinkNews, Links
from bundlerun.workers.shares.sending import Sending
from bundlerun.workers.shares.slow import Found, Slowness
from bundlerun.workers.shares.spent import Spending
from bundlerun.workers.shares.tally import MOST_RANKS, Tally


class News(NamedTuple):
    """What a step has brought to light."""

    change: Change | None = None
    found: Found | None = None
    link: LinkNews | None = None


class Shares:
    """Looks, on every rank; all see the same numbers, so all decide the same.

    Args:
        config: of the run.
        session: this rank's place.
        meters: have its times.
        feed: shares out.
    """

    def __init__(self, config: TrainConfig, session: Session, meters: Meters, feed: Feed) -> None:
        topology = session.topology
        self._feed = feed
        self.sending = Sending(session, meters.sheet)
        """What this rank sends to other nodes."""
        self._spending = Spending(meters.sheet, feed.asked_for, lambda: self.sending.lately)
        is_told = topology.num_bundles > 1 and len(topology.active_ranks) <= MOST_RANKS
        self.tally = Tally(topology, session.place, self._spending.so_far) if is_told else None
        """What travels for that; None: there is nobody to compare with, or there are too many."""
        # Who does how much decides in which order is summed.
        self.is_measured = config.share == "measured" and not config.deterministic
        is_within = self.is_measured and is_memory_kept(
            Pipeline.of(topology, config.schedule), config.num_microbatches, topology.num_bundles
        )
        self._balance = (
            Balance(topology, config.num_microbatches, feed.counts)
            if is_told and is_within
            else None
        )
        names = [node.name for node in session.nodes]
        self._slowness = Slowness(topology, names)
        self._links = Links(topology, names)

    @property
    def is_by_epoch(self) -> bool:
        """Whether shares change between epochs only."""
        return self.is_measured and self._balance is None

    def begin_step(self) -> None:
        """A step begins."""
        self._spending.begin_step()

    def end_step(self, step: int, num_microbatches: int) -> News:
        """A step is over; from a step to come on, work may be shared out anew.

        Args:
            step: finished steps.
            num_microbatches: of this rank's bundle.
        """
        self._spending.end_step(num_microbatches)
        if self.tally is None:
            return News()
        spent = self.tally.spent
        change = None if self._balance is None else self._balance.see(step, spent)
        if change is not None:
            self._feed.share_from(change.first_step, change.speeds)
        return News(change, self._slowness.see(step, spent), self._links.see(spent))
