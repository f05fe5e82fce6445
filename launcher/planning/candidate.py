"""A plan that could be, and what is foreseen of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from bundlerun.launcher.choices import Reading, ScheduleName, SchemeName
from bundlerun.launcher.layout.exchange_form import EXACT, ExchangeForm
from bundlerun.launcher.layout.shape import Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is wanted, and what is not for the planner to choose.

    Args:
        batch_size: samples of a step.
        shape: None: to be chosen, as are the others.
        cuts: boundaries' numbers.
        schedule: as the option.
        sync: as the option.
        samples: of a micro-batch.
        chunks: per stage; None: to be chosen.
        recompute: stages that compute their activations again; None: to be chosen where memory
            does not do.
        without: schedules that are out of the question.
        may_order_nodes: whether nodes may change places, where bundles span several.
        exchange: the form of gradients between nodes.
        bucket_bytes: of a bucket of gradients; 0: by default.
        has_snapshot: whether the state is copied to the memory of the node.
        snapshot_copies: nodes that are to have each stage's.
        keeps_verified: whether states that were verified are kept there, too.
        num_steps: of the whole run; 0: not known.
        begins_with: how the weights that a new run begins with are read.
    """

    batch_size: int
    shape: Shape | None = None
    cuts: tuple[int, ...] | None = None
    schedule: ScheduleName | None = None
    sync: SchemeName | None = None
    samples: int | None = None
    chunks: int | None = 1
    recompute: frozenset[int] | None = None
    without: frozenset[ScheduleName] = frozenset()
    may_order_nodes: bool = False
    exchange: ExchangeForm = EXACT
    bucket_bytes: int = 0
    has_snapshot: bool = True
    snapshot_copies: int = 1
    keeps_verified: bool = False
    num_steps: int = 0
    begins_with: Reading = Reading.NOTHING


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A plan: all that is chosen.

    Args:
        shape: devices per stage of a bundle.
        cuts: numbers of the boundaries at which the chunks after the first begin.
        schedule: the order of passes.
        sync: the way to sum gradients.
        samples: of a micro-batch.
        chunks: per stage.
        recompute: stages that compute their activations again.
        node_order: which node of the cluster stands in which place; empty: as it is.
    """

    shape: Shape
    cuts: tuple[int, ...]
    schedule: ScheduleName
    sync: SchemeName
    samples: int
    chunks: int = 1
    recompute: frozenset[int] = frozenset()
    node_order: tuple[int, ...] = ()


class Term(Enum):
    """A part of a step's time; they add up to it."""

    COMPUTE = "computing"
    """The passes of the rank that works the most."""
    BUBBLE = "pipeline bubble"
    """It waits for other stages, with links that take no time."""
    LINKS = "links between stages"
    """It waits longer, as they do."""
    EXCHANGE = "sums of gradients"
    """What of them is left once the last backward is done."""
    UPDATE = "optimizer"
    OTHER = "other"
    """Beginning and end of a step; data that comes late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """What one rank needs, bytes: on its device, and in the memory of its node.

    Where devices are CPU slots both are the same memory.
    """

    parameters: int
    buffers: int
    gradients: int
    optimizer: int
    activations: int
    """Of all micro-batches in flight by the schedule."""
    working: int
    """The most that one pass has at once beside them."""
    update: int = 0
    """What the optimizer's step has at once beside the state; the activations have gone then."""
    buckets: int
    wires: int
    """Messages to and from other stages, sent and received ahead."""
    program: int
    """Interpreter, torch, its libraries: on the node, and what a device keeps for itself."""
    snapshot: int
    """In /dev/shm of the node."""
    loader: int
    """Of the loading processes, on the node."""
    held: int = 0
    """That the allocator of a CPU has been given back, and keeps."""
    start: int = 0
    """Before all that, in the memory of the node: the whole model, of which the stage is cut."""
    check: int = 0
    """Beside it, where there is room: the stages are compared with the model."""
    initial: int = 0
    """Beside the whole model: weights that the run begins with, as they are in their files."""

    @property
    def device(self) -> int:
        """All that is on the device."""
        moment = max(self.activations + self.working, self.update) + self.buckets + self.wires
        moment += self.held
        return self.parameters + self.buffers + self.gradients + self.optimizer + moment

    @property
    def total(self) -> int:
        """All of it: the most that there is at one moment."""
        moment = max(self.device + self.snapshot, self.start + self.initial + self.check)
        return moment + self.program + self.loader

    def needed(self, *, on_host: bool) -> int:
        """What the node has to have for it.

        Args:
            on_host: whether its device is a CPU slot, whose memory is that of the node.
        """
        state = self.snapshot + (self.device if on_host else 0)
        return max(state, self.start + self.initial) + self.program + self.loader


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is foreseen of a plan.

    Args:
        step_s: seconds of a step.
        terms: what it consists of.
        bubble: the share of the devices' time that is idle in a step.
        egress_bytes: that a node sends to others per step, the node that sends the most.
        exchange_s: seconds that the sums between nodes take in all, hidden or not.
        memory: of a rank of each stage.
    """

    step_s: float
    terms: Mapping[Term, float]
    bubble: float
    egress_bytes: int
    exchange_s: float
    memory: tuple[RankMemory, ...]

    @property
    def limit(self) -> Term:
        """What takes most of the time beside computing; computing, where that is little."""
        most = max((t for t in Term if t is not Term.COMPUTE), key=lambda t: self.terms.get(t, 0.0))
        is_small = self.terms.get(most, 0.0) < 0.05 * self.step_s
        return Term.COMPUTE if is_small else most
