"""What a rank does right now, and how long it has: numbers in memory that its agent sees, too.

    rank's own thread    enters a phase: when | leaves it: 0, and its seconds grow
    thread of a leg      the same, for its phase
    liveness, agent      read: where does this rank stand, since when, whom does it wait for?

A number is written at once, and nobody locks: who reads sees what was true a moment ago. So it
also tells of a rank that is stopped, or that has lost its interpreter to a call that never returns.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, get_args

from bundlerun.launcher.why.sockets import Traffic
from bundlerun.launcher.why.sums import Sent

Phase = Literal[
    "data",
    "forward",
    "backward",
    "send",
    "receive",
    "collect",
    "exchange",
    "gather",
    "distribute",
    "sync_wait",
    "optimizer",
    "snapshot",
    "snapshot_wait",
    "checkpoint",
    "validate",
    "launch",
]
PHASES: Final[tuple[Phase, ...]] = get_args(Phase)
"""The legs of the sync, `collect` to `distribute`, run while the others do: `sync_wait` is the
part that is not hidden. So do the copies of a snapshot, with `snapshot_wait`."""
LEGS: Final[tuple[Phase, ...]] = ("collect", "exchange", "gather", "distribute")
BESIDE: Final[tuple[Phase, ...]] = (*LEGS, "snapshot", "launch")
"""What no rank's own thread stands in."""


class Message(IntEnum):
    """What a rank waits for on a link."""

    NONE = 0
    ACTIVATION = 1
    GRADIENT = 2
    TARGET = 3


class Talk(IntEnum):
    """With whom a rank exchanges a word, outside the phases.

    BUNDLE: all ranks of its bundle, or those of its stage. MEETING: all ranks that begin a round.
    """

    NONE = 0
    BUNDLE = 1
    MEETING = 2


_HEAD: Final = 32
NUM_WORDS: Final = 96
BYTES: Final = 8 * NUM_WORDS
_SINCE: Final = _HEAD
_TOTAL: Final = _SINCE + len(PHASES)
(
    _ENTERED,
    _RANK,
    _NODE,
    _BUNDLE,
    _STAGE,
    _REPLICA,
    _LIMIT_S,
    _TOKEN,
    _BEGUN,
    _STEP,
    _LEFT,
    _PEER,
    _MESSAGE,
    _MICROBATCH,
    _TALK,
    _TALK_SINCE,
    _NUM_MICROBATCHES,
    _STACKS_FD,
    _IN_EPOCH,
    _WORLD,
    _RUN_DELAY_S,
    _CPU_S,
    _DELAY_AT_BEGIN,
    _CPU_AT_BEGIN,
    _SENT_NODE,
    _SENT_BYTES,
    _SENT_S,
    _SENT_AGAIN,
    _SENT_SEGMENTS,
    _SENT_LEAST_RTT_S,
    _SENT_RTT_S,
) = range(31)
assert _TOTAL + len(PHASES) <= NUM_WORDS

SINCE: Final[Mapping[Phase, int]] = {phase: _SINCE + i for i, phase in enumerate(PHASES)}
TOTAL: Final[Mapping[Phase, int]] = {phase: _TOTAL + i for i, phase in enumerate(PHASES)}
LEFT: Final = _LEFT
"""The word of when the rank's own thread last left a phase."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """Which rank it is, for a reader; -1 for what a spare rank has not.

    Args:
        limit_s: longest wait for another rank, seconds.
        token: 32 bits that all ranks of a round have in common.
    """

    rank: int
    world_size: int
    node: int
    bundle: int
    stage: int
    replica: int
    limit_s: float
    token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where the own thread of a rank is.

    Args:
        phase: the innermost one; "" between two.
        peer: the rank that it waits for; -1: none, or several.
        message: of that rank.
        microbatch: of the bundle, that the message is about.
        talk: see there.
        age_s: for how long, seconds.
        legs: how long each leg of its sync has been at one thing, seconds.
    """

    phase: Phase | Literal[""]
    peer: int
    message: Message
    microbatch: int
    talk: Talk
    age_s: float
    legs: Mapping[str, float]


class Sheet:
    """The numbers of one rank; times are of the machine's monotonic clock, seconds."""

    def __init__(self, words: memoryview[float]) -> None:
        self.words = words

    @classmethod
    def private(cls) -> Sheet:
        """One that only this process sees."""
        return cls(memoryview(bytearray(BYTES)).cast("d"))

    @property
    def is_filled(self) -> bool:
        """Whether a rank has said who it is."""
        return self.words[_ENTERED] != 0

    def enter(self, seat: Seat, now_s: float) -> None:
        """The rank knows its place in the round."""
        words = self.words
        for index, value in (
            (_RANK, seat.rank),
            (_WORLD, seat.world_size),
            (_NODE, seat.node),
            (_BUNDLE, seat.bundle),
            (_STAGE, seat.stage),
            (_REPLICA, seat.replica),
            (_LIMIT_S, seat.limit_s),
            (_TOKEN, seat.token),
            (_LEFT, now_s),
            (_BEGUN, now_s),
            (_TALK, Talk.MEETING),
            (_TALK_SINCE, now_s),
        ):
            words[index] = float(value)
        # Last: who finds it set finds the others complete.
        words[_ENTERED] = 1.0

    @property
    def seat(self) -> Seat:
        """See `enter`."""
        words = self.words
        return Seat(
            rank=int(words[_RANK]),
            world_size=int(words[_WORLD]),
            node=int(words[_NODE]),
            bundle=int(words[_BUNDLE]),
            stage=int(words[_STAGE]),
            replica=int(words[_REPLICA]),
            limit_s=float(words[_LIMIT_S]),
            token=int(words[_TOKEN]),
        )

    def clear(self) -> None:
        """Nobody is here."""
        for index in range(NUM_WORDS):
            self.words[index] = 0.0

    # --- what the rank says

    def awaits(self, message: Message, peer: int, microbatch: int) -> None:
        """The next `receive` is for this."""
        words = self.words
        words[_MESSAGE] = message
        words[_PEER] = peer
        words[_MICROBATCH] = microbatch

    def talks(self, talk: Talk) -> None:
        """The rank's own thread waits for a word of others; NONE: it has it."""
        now = time.perf_counter()
        self.words[_TALK_SINCE] = 0.0 if talk is Talk.NONE else now
        self.words[_TALK] = talk
        self.words[_LEFT] = now

    @property
    def talk(self) -> Talk:
        """What `talks` has said last."""
        return Talk(int(self.words[_TALK]))

    def begin_epoch(self, now_s: float) -> None:
        """Seconds and micro-batches count from here."""
        words = self.words
        words[_NUM_MICROBATCHES] = words[_SENT_S] = 0.0
        words[_DELAY_AT_BEGIN] = words[_RUN_DELAY_S]
        words[_CPU_AT_BEGIN] = words[_CPU_S]
        words[_BEGUN] = now_s

    def finish(self, step: int) -> None:
        """A step is finished; the run has `step` of them."""
        self.words[_STEP] = step

    def count(self, num_microbatches: int) -> None:
        """The bundle did so many more in this epoch."""
        self.words[_NUM_MICROBATCHES] += num_microbatches

    def sends(self, node: int, each: Traffic) -> None:
        """What went to another node in this epoch, the one whose wire took longest."""
        words = self.words
        words[_SENT_NODE], words[_SENT_BYTES], words[_SENT_S] = node, each.num_bytes, each.wire_s
        words[_SENT_AGAIN], words[_SENT_SEGMENTS] = each.retransmitted, each.segments
        words[_SENT_LEAST_RTT_S], words[_SENT_RTT_S] = each.least_rtt_s, each.rtt_s

    def scheduled(self, cpu_s: float, run_delay_s: float) -> None:
        """What the kernel says of the rank's own thread: it had a core, it waited for one."""
        self.words[_CPU_S] = cpu_s
        self.words[_RUN_DELAY_S] = run_delay_s

    @property
    def stacks_fd(self) -> int:
        """Of the rank, where its stacks come to at a signal; -1: nowhere."""
        return int(self.words[_STACKS_FD]) - 1

    @stacks_fd.setter
    def stacks_fd(self, fd: int) -> None:
        self.words[_STACKS_FD] = fd + 1

    # --- what others read

    @property
    def step(self) -> int:
        """Finished steps of the run."""
        return int(self.words[_STEP])

    @property
    def num_microbatches(self) -> int:
        """Of the bundle, in this epoch."""
        return int(self.words[_NUM_MICROBATCHES])

    @property
    def begun_s(self) -> float:
        """When the epoch began, or the round."""
        return float(self.words[_BEGUN])

    @property
    def cpu_s(self) -> float:
        """Seconds of the epoch in which the rank's own thread had a core."""
        return float(self.words[_CPU_S] - self.words[_CPU_AT_BEGIN])

    @property
    def run_delay_s(self) -> float:
        """Seconds of the epoch in which it was ready and had none."""
        return float(self.words[_RUN_DELAY_S] - self.words[_DELAY_AT_BEGIN])

    @property
    def all_run_delay_s(self) -> float:
        """The same since the rank began."""
        return float(self.words[_RUN_DELAY_S])

    @property
    def sent(self) -> tuple[int, Sent]:
        """See `sends`: the node, and what went to it."""
        numbers = (float(self.words[index]) for index in range(_SENT_BYTES, _SENT_RTT_S + 1))
        node = int(self.words[_SENT_NODE])
        # Its name is not known here; whoever reads the sheets of all does.
        return node, Sent(f"#{node}", *numbers)

    def seconds(self) -> dict[str, float]:
        """Of each phase in this epoch; the one under way is not in it."""
        return {phase: float(self.words[index]) for phase, index in TOTAL.items()}

    def standing(self, now_s: float) -> Standing:
        """Where the rank is at `now_s`."""
        words = self.words
        own: dict[Phase | Literal[""], float] = {
            p: float(words[i]) for p, i in SINCE.items() if words[i] and p not in BESIDE
        }
        # Of phases inside each other the one entered last.
        phase, begun = max(own.items(), key=lambda each: each[1], default=("", 0.0))
        talk_since = float(words[_TALK_SINCE])
        since = max(float(words[_LEFT]), talk_since, begun)
        is_waiting = phase == "receive"
        return Standing(
            phase=phase,
            peer=int(words[_PEER]) if is_waiting else -1,
            message=Message(int(words[_MESSAGE])) if is_waiting else Message.NONE,
            microbatch=int(words[_MICROBATCH]) if is_waiting else -1,
            talk=Talk(int(words[_TALK])) if talk_since else Talk.NONE,
            age_s=max(0.0, now_s - since),
            legs={p: now_s - float(words[SINCE[p]]) for p in LEGS if words[SINCE[p]]},
        )

    def age_s(self, now_s: float) -> float:
        """How long the rank has been at one thing, seconds."""
        return self.standing(now_s).age_s
