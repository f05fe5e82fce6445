"""Pure: what a step was foreseen to take, beside what the steps of an epoch took.

{"kind": "forecast", "epoch": 3, "step": 4000, "foreseen_s": 0.48, "measured_s": 0.61,
 "terms": {"computing": [0.40, 0.41], "sums of gradients": [0.02, 0.14], ...},
 "off": "sums of gradients", "text": "0.610 s a step, foreseen 0.480: 27 % more; ..."}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bundlerun.launcher.planning.candidate import Forecast, Term
from bundlerun.launcher.why.sums import RankSums

PART = 0.15
"""Of a step, by which measured and foreseen may part before the term is named that is off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Foreseen and measured.

    Args:
        foreseen: seconds of each term.
        measured: the same, of a mean step.
    """

    foreseen: Mapping[Term, float]
    measured: Mapping[Term, float]

    @property
    def foreseen_s(self) -> float:
        """Of a step."""
        return sum(self.foreseen.values())

    @property
    def measured_s(self) -> float:
        """Of a step."""
        return sum(self.measured.values())

    @property
    def part(self) -> float:
        """How much longer a step took than it was to, as a share of that; below 0: less long."""
        return self.measured_s / self.foreseen_s - 1 if self.foreseen_s else 0.0

    @property
    def off(self) -> Term | None:
        """The term by which they part the most; None where they are near each other."""
        if abs(self.part) <= PART:
            return None
        # Another term may part as far to the other side: what counts is what moves the sum.
        sign = 1 if self.part > 0 else -1
        return max(Term, key=lambda term: sign * (self.measured[term] - self.foreseen[term]))

    @property
    def text(self) -> str:
        """One line for the log."""
        how = "more" if self.part > 0 else "less"
        # From twice as long on a percentage says little.
        much = f"{abs(self.part):.0%} {how}" if self.part < 1 else f"{1 + self.part:.1f} times it"
        line = f"{self.measured_s:.3f} s a step, foreseen {self.foreseen_s:.3f}: {much}"
        off = self.off
        if off is None:
            return line
        return (
            f"{line}; what is off is {off.value}: {self.measured[off]:.3f} s, foreseen "
            f"{self.foreseen[off]:.3f}"
        )

    def row(self, epoch: int, step: int) -> dict[str, Any]:
        """The values of its row in the history."""
        return {
            "epoch": epoch,
            "step": step,
            "foreseen_s": round(self.foreseen_s, 6),
            "measured_s": round(self.measured_s, 6),
            "terms": {
                term.value: [round(self.foreseen[term], 6), round(self.measured[term], 6)]
                for term in Term
            },
            "off": self.off.value if self.off is not None else None,
            "text": self.text,
        }


def beside(forecast: Forecast, ranks: Sequence[RankSums], num_steps: int) -> Beside | None:
    """Puts an epoch's steps beside a forecast; None where nothing was measured.

    Args:
        forecast: of a step.
        ranks: what each did in the epoch.
        num_steps: of it.
    """
    if not ranks or num_steps < 1:
        return None
    busiest = max(ranks, key=lambda rank: _of(rank, "forward", "backward", "optimizer"))
    step_s = busiest.wall_s / num_steps
    compute_s = _of(busiest, "forward", "backward") / num_steps
    update_s = _of(busiest, "optimizer") / num_steps
    waits_s = _of(busiest, "receive", "send", "sync_wait") / num_steps
    # A rank whose sums are there waits for messages of one whose sums are not: so it is not only
    # its own wait for sums that counts.
    exchange_s = min(waits_s, max(_of(rank, "sync_wait") for rank in ranks) / num_steps)
    foreseen = {term: forecast.terms.get(term, 0.0) for term in Term}
    slower = compute_s / foreseen[Term.COMPUTE] if foreseen[Term.COMPUTE] else 1.0
    # What nobody can tell from the wait itself: the pipeline's part grows with its passes.
    bubble_s = min(waits_s - exchange_s, slower * foreseen[Term.BUBBLE])
    measured = {
        Term.COMPUTE: compute_s,
        Term.BUBBLE: bubble_s,
        Term.LINKS: waits_s - exchange_s - bubble_s,
        Term.EXCHANGE: exchange_s,
        Term.UPDATE: update_s,
    }
    measured[Term.OTHER] = max(0.0, step_s - sum(measured.values()))
    return Beside(foreseen=foreseen, measured=measured)


def _of(rank: RankSums, *phases: str) -> float:
    return sum(rank.seconds.get(phase, 0.0) for phase in phases)
