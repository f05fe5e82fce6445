"""Pure: whether a run that was started again and again is still worth another start (I12)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from launcher.errors import EXIT_CONFIG, EXIT_RESUMABLE, VERDICT_FINAL

FINAL_CODES = (EXIT_CONFIG, EXIT_RESUMABLE, VERDICT_FINAL)
"""Exit codes of a rank that another start would only repeat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one start of the workers of this node ended.

    num_steps: that it finished. exit_codes: of its ranks that ended in good order.
    over: why the node had to leave the round; empty where its own ranks failed.
    """

    num_steps: int
    exit_codes: tuple[int, ...] = ()
    over: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether something failed, here or on another node; a node that joins is none."""
        return not self.over or (self.over.startswith("node ") and not self.over.endswith("joins"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many attempts in a row may finish no step, and how many have.

    most: attempts in a row after which the run ends; 0: no limit.
    """

    most: int
    num_barren: int = 0

    def after(self, attempt: Attempt) -> Budget:
        """The budget once `attempt` has ended."""
        if attempt.num_steps:
            return replace(self, num_barren=0)
        return replace(self, num_barren=self.num_barren + attempt.is_failure)

    def verdict(self, attempt: Attempt) -> str:
        """Why there is not to be another start after `attempt`; empty where there is."""
        final = final_code(attempt.exit_codes)
        if final == VERDICT_FINAL:
            return "another start would come to the same"
        if final is not None:
            return f"a rank ended with exit code {final}, which another start would not change"
        if self.most and self.num_barren >= self.most:
            return f"{self.num_barren} attempts in a row finished no step"
        return ""


def final_code(codes: Iterable[int]) -> int | None:
    """The exit code among `codes` that ends a run; None where none does."""
    return next((code for code in codes if code in FINAL_CODES), None)
