"""Pure: whether a run that was started again and again is still worth another start (I12)."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bundlerun.launcher.errors import (
    EXIT_CONFIG,
    EXIT_FAILED,
    EXIT_NODE,
    EXIT_RESUMABLE,
    VERDICT_FINAL,
)
from bundlerun.launcher.ranks.cause import EndCause
from bundlerun.launcher.ranks.fault import Fault, FaultKind

FINAL_CODES = (EXIT_CONFIG, EXIT_RESUMABLE, VERDICT_FINAL)
"""Exit codes of a rank that another start would only repeat."""

_FAILURES = (None, EndCause.LOST, EndCause.ASKS)
"""What ends a round where something failed, here or elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """How one start of the workers of this node ended.

    num_steps: that it finished; step: finished steps of the run. exit_codes: of its ranks that
    ended in good order. faults: of those that raised. is_spare: no bundle needed its ranks.
    over: why the node had to leave the round; None where its own ranks failed.
    """

    num_steps: int
    step: int = 0
    exit_codes: tuple[int, ...] = ()
    faults: tuple[Fault, ...] = ()
    is_spare: bool = False
    over: EndCause | None = None

    @property
    def places(self) -> frozenset[int]:
        """Where the program failed by itself."""
        return frozenset(f.place for f in self.faults if f.kind >= FaultKind.PROGRAM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many attempts in a row may finish no step that is new to the run, and how many have.

    most: attempts in a row after which the run ends; 0: no limit. furthest: most steps of the run
    that were ever finished. places: where the program has failed by itself. is_repeated: it did at
    one of those places once more.
    """

    most: int
    num_barren: int = 0
    furthest: int = 0
    places: frozenset[int] = frozenset()
    is_repeated: bool = False

    def after(self, attempt: Attempt) -> Budget:
        """The budget once `attempt` has ended."""
        if attempt.is_spare:
            return self
        # Steps that are done once more after a restart are no progress (I12).
        is_new = attempt.num_steps > 0 and attempt.step > self.furthest
        return replace(
            self,
            # A newcomer or a cut network is no failure, and costs no attempt.
            num_barren=0 if is_new else self.num_barren + (attempt.over in _FAILURES),
            furthest=max(self.furthest, attempt.step),
            places=self.places | attempt.places,
            is_repeated=bool(self.places & attempt.places),
        )

    def verdict(self, attempt: Attempt) -> str:
        """Why there is not to be another start after `attempt`; empty where there is."""
        final = final_code(attempt.exit_codes)
        if final == VERDICT_FINAL:
            return "another start would have the same result"
        if final is not None:
            return f"a rank ended with exit code {final}, which another start would not change"
        is_hopeless = any(fault.kind is FaultKind.HOPELESS for fault in attempt.faults)
        if is_hopeless and self.furthest == 0:
            return "the program fails before its first step, and would in another start"
        if self.most and self.is_repeated:
            return "the same error at the same place and step again, as in another start"
        if self.most and self.num_barren >= self.most:
            return f"{self.num_barren} attempts in a row finished no new step"
        return ""


def final_code(codes: Iterable[int]) -> int | None:
    """The exit code among `codes` that ends a run; None where none does."""
    return next((code for code in codes if code in FINAL_CODES), None)


def code_of_failed(codes: Iterable[int]) -> int:
    """What a run that has failed ends with, by the exit codes of the ranks of its last start.

    What one rank says of its machine may be over in another start, and the others failed otherwise;
    where all say so, the machine is what is wrong. A rank that the agent ended says nothing.
    """
    # Ranks that the agent ended by SIGTERM tell nothing about the cause.
    own = [code for code in codes if code != 128 + signal.SIGTERM]
    final = final_code(own)
    if final is not None:
        return EXIT_FAILED if final == VERDICT_FINAL else final
    return EXIT_NODE if own and all(code == EXIT_NODE for code in own) else EXIT_FAILED
