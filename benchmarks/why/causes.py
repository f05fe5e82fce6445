"""The causes: what is planted, and what is to be named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from bundlerun.launcher.why.hang import Cause
from bundlerun.launcher.why.pace import Bound, SlowBy

Outside = Literal["", "stop", "hog", "cut"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What `bundlerun why` is to say; what is None does not matter.

    Args:
        bound, stage: of the step. slow, slow_stage: which rank is slower than its peers, and why;
            always one of node n1. wire: whether a way between two nodes is named.
        cause: why it stands, always by a rank of node n1. code: the place is in the recipe.
            helper: it is in a process that loads data.
        event: the agent's, where the end of a rank or node is the story.
    """

    bound: Bound | None = None
    stage: int | None = None
    slow: SlowBy | None = None
    slow_stage: int | None = None
    wire: bool = False
    cause: Cause | None = None
    code: bool = False
    helper: bool = False
    event: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One cause.

    Args:
        plant: see `planted`; outside: what is done to the run instead.
        options: of the run, as typed; environ: of its recipe.
        mbit_per_s: of the link of each node; 0: nodes are addresses of the loopback.
        slots: of the nodes.
    """

    name: str
    told: Told
    plant: Mapping[str, object] = field(default_factory=dict)
    outside: Outside = ""
    options: Mapping[str, object] = field(default_factory=dict)
    environ: Mapping[str, str] = field(default_factory=dict)
    mbit_per_s: float = 0.0
    slots: tuple[int, ...] = (2, 2)

    @property
    def is_hang(self) -> bool:
        """Whether the run is to stand, and not only to be slow."""
        return self.told.cause is not None or bool(self.told.event)


def _sleeps(place: str, seconds: float, **where: object) -> dict[str, object]:
    return {"place": place, "act": "sleep", "seconds": seconds, **where}


def _stuck(place: str, act: str = "stuck", **where: object) -> dict[str, object]:
    return {"place": place, "act": act, "node": "n1", **where}


_LOADERS = {"loader-workers": 1}
CASES = (
    Case(name="data: slow", plant=_sleeps("data", 0.008), told=Told(bound=Bound.DATA)),
    Case(
        name="data: slow, by loading processes",
        plant=_sleeps("data", 0.012),
        options=_LOADERS,
        told=Told(bound=Bound.DATA),
    ),
    Case(
        name="data: slow on one node",
        plant=_sleeps("data", 0.008, node="n1"),
        told=Told(bound=Bound.DATA, slow=SlowBy.DATA, slow_stage=0),
    ),
    Case(
        name="forward: slow stage 1",
        plant=_sleeps("forward", 0.03, stage=1),
        told=Told(bound=Bound.COMPUTE, stage=1),
    ),
    Case(
        name="backward: slow stage 0",
        plant=_sleeps("backward", 0.03, stage=0),
        told=Told(bound=Bound.COMPUTE, stage=0),
    ),
    Case(name="loss: slow", plant=_sleeps("loss", 0.03), told=Told(bound=Bound.COMPUTE, stage=1)),
    Case(
        name="forward: one slow replica",
        plant=_sleeps("forward", 0.03, node="n1", stage=0),
        told=Told(bound=Bound.COMPUTE, stage=0, slow=SlowBy.COMPUTE, slow_stage=0),
    ),
    Case(
        name="optimizer: slow", plant=_sleeps("optimizer", 0.25), told=Told(bound=Bound.OPTIMIZER)
    ),
    Case(
        name="optimizer: slow on one rank",
        plant=_sleeps("optimizer", 0.25, node="n1", local_rank=1),
        told=Told(bound=Bound.OPTIMIZER, slow=SlowBy.OPTIMIZER, slow_stage=1),
    ),
    Case(
        name="checkpoints: slow folder",
        plant=_sleeps("checkpoint", 0.4),
        options={"checkpoint-steps": 2},
        told=Told(bound=Bound.CHECKPOINT),
    ),
    Case(
        name="snapshots: slow memory",
        plant=_sleeps("snapshot", 0.4),
        # Else there are as few as cost little, and what is slow is seldom done.
        options={"snapshot-steps": 1},
        told=Told(bound=Bound.SNAPSHOT),
    ),
    Case(
        name="processors: other programs on one node",
        outside="hog",
        environ={"WHY_BUSY": "1", "WHY_SAMPLES": "64000"},  # an epoch that is long enough to tell
        told=Told(slow=SlowBy.PROCESSOR),
    ),
    Case(
        name="link: slow between stages",
        environ={"WHY_WIDTH": "4096"},
        mbit_per_s=10,
        slots=(1, 1),
        told=Told(bound=Bound.LINK, wire=True),
    ),
    Case(
        name="link: slow exchange",
        environ={"WHY_BALLAST": "500000"},
        mbit_per_s=50,
        told=Told(bound=Bound.EXCHANGE, wire=True),
    ),
    Case(name="stands: in the loss", plant=_stuck("loss"), told=Told(cause=Cause.CODE, code=True)),
    Case(
        name="stands: in a forward",
        plant=_stuck("forward", stage=0),
        told=Told(cause=Cause.CODE, code=True),
    ),
    Case(
        name="stands: in a backward",
        plant=_stuck("backward", stage=1),
        told=Told(cause=Cause.CODE, code=True),
    ),
    Case(
        name="stands: in __getitem__",
        plant=_stuck("data"),
        told=Told(cause=Cause.DATA, code=True),
    ),
    Case(
        name="stands: in __getitem__ of a loading process",
        plant=_stuck("data"),
        options=_LOADERS,
        told=Told(cause=Cause.DATA, code=True, helper=True),
    ),
    Case(
        name="stands: opens a pipe that nobody writes",
        plant=_stuck("data", "pipe"),
        options=_LOADERS,
        told=Told(cause=Cause.DATA, code=True, helper=True),
    ),
    Case(
        name="stands: never comes to a collective",
        plant=_stuck("optimizer", local_rank=0),
        told=Told(cause=Cause.CODE, code=True),
    ),
    Case(
        name="stands: a call keeps the interpreter",
        plant=_stuck("forward", "held", stage=1),
        told=Told(cause=Cause.CODE, code=True),
    ),
    Case(
        name="stands: in a checkpoint",
        # Bundle 0 writes them; which node has it is not known before.
        plant={"place": "checkpoint", "act": "stuck", "local_rank": 0},
        options={"checkpoint-steps": 2},
        told=Told(cause=Cause.CHECKPOINT),
    ),
    Case(
        name="stands: a message between stages is lost",
        plant=_stuck("message", "drop"),
        slots=(1, 1),
        told=Told(cause=Cause.LINK),
    ),
    Case(
        name="stands: a message of a sum is lost",
        plant=_stuck("sum", "drop"),
        told=Told(cause=Cause.LINK),
    ),
    Case(name="stands: SIGSTOP", outside="stop", told=Told(event="rank stopped")),
    Case(
        name="stands: a node is cut off",
        outside="cut",
        mbit_per_s=1000,
        slots=(2, 1, 1),  # of two halves alike, either may be the one that is lost
        told=Told(event="coordinator: lost"),
    ),
)
