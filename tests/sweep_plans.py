"""The search for plans against all plans there are, on 500 small cases at random.

    python -m tests.sweep_plans [--cases N] [--first SEED] [--plans N]     or: make plans

Each case is a model of up to 8 pieces, nodes of up to 6 devices in all, some slower than others,
some with little memory, and a request that leaves up to that many plans open. Prints each case in
which something is wrong, and sums up; ends with 1 if anything is. Some minutes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.planning.search.best import Search, best_plans
from tests.unit.launcher.planning.search.toy import Toy, toy_of

NEAR = 0.02
"""How much longer than the best a step may be, where the search does not say that it is."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What came of one.

    Args:
        least_s: of all plans; inf: none fits.
        found: by the search; None: no plan.
        num_plans: that were foreseen to know the least.
    """

    least_s: float
    found: Search | None
    num_plans: int

    @property
    def over(self) -> float:
        """How much longer the found step is, as a share."""
        return self.found.plans[0].forecast.step_s / self.least_s - 1 if self.found else 0.0

    def faults(self) -> list[str]:
        """What is wrong."""
        if self.found is None or self.least_s == inf:
            return [] if self.found is None and self.least_s == inf else ["whether any plan fits"]
        told = []
        if self.found.bound_s > self.least_s * (1 + _ROUNDING):
            told.append(f"the bound {self.found.bound_s} is above the least {self.least_s}")
        if self.over < -_ROUNDING:
            told.append(f"better than all plans by {-self.over:.2%}")
        if self.over > (_ROUNDING if self.found.is_optimal else NEAR):
            told.append(f"{self.over:.2%} above the least, proven: {self.found.is_optimal}")
        return told


def case_of(toy: Toy) -> Case:
    """Searches, and tries all plans."""
    least_s, _ = toy.best_by_force()
    num_plans, toy.num_foreseen = toy.num_foreseen, 0
    try:
        found = best_plans(
            toy.profile, toy.cluster, toy.request, foresee=toy.foresee, memory=toy.memory
        )
    except ConfigError:
        found = None
    return Case(least_s=least_s, found=found, num_plans=num_plans)


def main(argv: Sequence[str] | None = None) -> int:
    """Looks at all cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=500)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--plans", type=int, default=1500)
    args = parser.parse_args(argv)
    cases: list[Case] = []
    num_wrong = 0
    for seed in range(args.first, args.first + args.cases):
        case = case_of(toy_of(seed, most_plans=args.plans))
        for fault in case.faults():
            num_wrong += 1
            print(f"case {seed}: {fault}", flush=True)
        cases.append(case)
    there = [case for case in cases if case.found is not None]
    searches = [case.found for case in there if case.found is not None]
    proven = sum(search.is_optimal for search in searches)
    exact = sum(case.over <= _ROUNDING for case in there)
    print(f"{len(cases)} cases, {len(cases) - len(there)} of them without a plan that fits")
    print(f"best plan found in {exact}, proven by the search in {proven}")
    print(f"worst {max((case.over for case in there), default=0):.2%} above the best")
    gaps = sorted(search.gap for search in searches)
    print(f"bound below the plan found: median {gaps[len(gaps) // 2]:.2%}, worst {gaps[-1]:.2%}")
    tried = sum(case.num_plans for case in there)
    print(f"foreseen {sum(s.num_foreseen for s in searches):,} plans, by force {tried:,}")
    return 1 if num_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
