"""What is foreseen of plans for one model on one cluster: time and memory together."""

from __future__ import annotations

from dataclasses import dataclass

from bundlerun.launcher.planning.candidate import Candidate, Forecast, RankMemory, Request
from bundlerun.launcher.planning.cluster import Cluster
from bundlerun.launcher.planning.forecast import foresee
from bundlerun.launcher.planning.memory.ranks import rank_memory
from bundlerun.launcher.planning.model_costs import Profile
from bundlerun.launcher.planning.search.best import EFFORT, Search, best_plans


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """How plans are judged.

    Args:
        profile: of the model.
        cluster: the machines.
        request: what is wanted.
    """

    profile: Profile
    cluster: Cluster
    request: Request

    def memory(self, one: Candidate) -> tuple[RankMemory, ...]:
        """What a rank of each stage needs."""
        return rank_memory(self.profile, one, self.cluster, self.request)

    def forecast(self, one: Candidate) -> Forecast:
        """Of a step."""
        return foresee(self.profile, one, self.cluster, self.request, self.memory(one))

    def best(self, most: int = 1, *, effort: int = EFFORT) -> Search:
        """The best plans.

        Args:
            most: plans to return.
            effort: plans to foresee at most.

        Raises:
            ConfigError: none fits.
        """
        return best_plans(
            self.profile,
            self.cluster,
            self.request,
            foresee=self.forecast,
            memory=self.memory,
            most=most,
            effort=effort,
        )
