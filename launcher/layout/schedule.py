"""Which pass of which micro-batch a rank does, in which order.

F forward, B backward; the rows of a picture are stage.replica. A stage of width w takes the
micro-batches in turn (I3), so every order of a replica is that of the stage, thinned out:

    1f1b, shape 1,1, four micro-batches            shape 2,1
    0.0  F0 F1 B0 F2 B1 F3 B2 B3                   0.0  F0 F2 B0 B2
    1.0  F0 B0 F1 B1 F2 B2 F3 B3                   0.1  F1 F3 B1 B3
                                                   1.0  F0 B0 F1 B1 F2 B2 F3 B3

All ranks of a bundle follow one `Pipeline`. An action names one of the rank's own chunks of
the model, see `Chunks`.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import zip_longest
from math import lcm
from typing import NamedTuple

from bundlerun.launcher.choices import ScheduleChoice, ScheduleName
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.rounding import divided_up
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology


class Pass(Enum):
    """What an action does with its micro-batch.

    A backward that a weight pass follows only makes the gradients of the stage's inputs.
    """

    FORWARD = "F"
    BACKWARD = "B"
    WEIGHT = "W"


class Action(NamedTuple):
    """One pass of one micro-batch through one of the rank's chunks of the model."""

    kind: Pass
    microbatch: int
    """Counts inside the bundle."""
    chunk: int = 0
    """Counts the chunks of the rank."""

    @property
    def key(self) -> tuple[int, int]:
        """What the passes of one micro-batch through one chunk have in common."""
        return self.microbatch, self.chunk

    def __str__(self) -> str:
        chunk = f".{self.chunk}" if self.chunk else ""
        return f"{self.kind.value}{self.microbatch}{chunk}"


Order = list[Action]
Schedule = dict[tuple[int, int], Order]
"""The orders of all ranks of a bundle, by (stage, replica)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """How the micro-batches of a step go through a bundle.

    Args:
        shape: of the bundle.
        schedule: name of the order of passes.
        chunks_per_stage: of the model; above 1 only where the schedule is interleaved.
        slow_links: stages whose link to the next one is slow; for eager-1f1b and zero-bubble.
    """

    shape: Shape
    schedule: ScheduleName = "1f1b"
    chunks_per_stage: int = 1
    slow_links: frozenset[int] = frozenset()

    @classmethod
    def of(cls, topology: Topology, schedule: ScheduleChoice) -> Pipeline:
        """What all bundles of a job do; "auto" is the schedule that suits the topology."""
        crossings = topology.node_crossings
        name = _suitable(topology) if schedule == "auto" else schedule
        return cls(
            shape=topology.shape,
            schedule=name,
            chunks_per_stage=topology.chunks_per_stage,
            # Asked for on one node, eager takes every link for slow.
            slow_links=frozenset(range(topology.num_stages - 1))
            if name == "eager-1f1b" and not crossings
            else crossings,
        )

    @property
    def chunks(self) -> Chunks:
        """Which stage has which chunk of the model."""
        return Chunks(self.shape.num_stages, self.chunks_per_stage)

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole model."""
        return self.chunks.num_chunks

    @property
    def largest_group(self) -> int:
        """No more micro-batches than that go through a chunk before the next chunk's turn."""
        return 2 * group_sizes(self.shape.widths, 0)[0]

    def order(self, stage: int, replica: int, num_microbatches: int) -> Order:
        """What one rank does in a training step.

        Args:
            num_microbatches: of the bundle, any number.
        """
        widths = self.shape.widths
        # I3: replica r of a stage of width w does the micro-batches j with j mod w = r.
        mine = range(replica, num_microbatches, widths[stage])
        match self.schedule:
            case "gpipe":
                return gpipe(mine)
            case "1f1b":
                return one_forward_one_backward(mine, num_warmups(widths)[stage])
            case "eager-1f1b":
                warmups = num_warmups(widths, self.slow_links)
                return one_forward_one_backward(mine, warmups[stage])
            case "zero-bubble":
                return zero_bubble(mine, num_warmups(widths, self.slow_links), stage)
            case "interleaved":
                return interleaved(widths, self.chunks_per_stage, stage, replica, num_microbatches)

    def forward_order(self, stage: int, replica: int, num_microbatches: int) -> Order:
        """What one rank does in an evaluation."""
        mine = range(replica, num_microbatches, self.shape.widths[stage])
        groups = group_sizes(self.shape.widths, num_microbatches)
        return list(_in_groups(Pass.FORWARD, mine, groups, range(self.chunks_per_stage)))

    def bundle(self, num_microbatches: int) -> Schedule:
        """What all ranks of a bundle do in a training step."""
        return {
            (stage, replica): self.order(stage, replica, num_microbatches)
            for stage, width in enumerate(self.shape.widths)
            for replica in range(width)
        }


def _suitable(topology: Topology) -> ScheduleName:
    if topology.chunks_per_stage > 1:
        return "interleaved"
    return "eager-1f1b" if topology.node_crossings else "1f1b"


def num_warmups(widths: Sequence[int], slow_links: Container[int] = ()) -> list[int]:
    """Per stage, the forwards that a replica does before its first backward.

    While each replica of the next stage works on its n' warm-up micro-batches and one more, this
    stage needs as many to keep working:

        n w  >=  (n' + 1) w'        w: width of this stage, w': of the next one

    Then the narrowest stage never waits, whatever the passes take. Proof: let T be the longest
    (forward + backward) / width of all stages. Forwards of micro-batch j may start at x + jT and
    backwards at y + jT on each stage, with y - x = n w T + forward: no two passes of a replica
    meet, as forward + backward <= wT, and x' = x + forward, y = y' + backward' can be had.

    Args:
        widths: devices per stage.
        slow_links: stages whose link to the next one is slow; one micro-batch more per replica
            travels.
    """
    # From the last stage to the first: each needs the number of the next one.
    numbers = [0]
    for stage in reversed(range(len(widths) - 1)):
        needed = divided_up((numbers[0] + 1) * widths[stage + 1], widths[stage])
        numbers.insert(0, needed + (stage in slow_links))
    return numbers


def _merged(forwards: Sequence[Action], backwards: Sequence[Action], num_warmup: int) -> Order:
    """First `num_warmup` forwards, then forwards and backwards alternately."""
    order = list(forwards[:num_warmup])
    # Backwards outlast the forwards by the warm-up; the last ones follow each other.
    for pair in zip_longest(forwards[num_warmup:], backwards):
        order += [action for action in pair if action is not None]
    return order


def _passes(kind: Pass, microbatches: Iterable[int]) -> Order:
    return [Action(kind, j) for j in microbatches]


def last_backwards(order: Order) -> dict[int, int]:
    """Where the gradients of each chunk become final: chunk by index of its last pass.

    That is never before the rank's last forward.
    """
    # A later index replaces an earlier one, so the last pass stays.
    last = {a.chunk: i for i, a in enumerate(order) if a.kind is not Pass.FORWARD}
    return {index: chunk for chunk, index in last.items()}


def gpipe(mine: Sequence[int]) -> Order:
    """All forwards, then all backwards: every micro-batch is in flight at once.

        0.0  F0 F1 F2 F3 B0 B1 B2 B3
        1.0  F0 F1 F2 F3 B0 B1 B2 B3

    Source: Huang et al., GPipe.
    """
    return _passes(Pass.FORWARD, mine) + _passes(Pass.BACKWARD, mine)


def one_forward_one_backward(mine: Sequence[int], num_warmup: int) -> Order:
    """Each backward as early as can be, so that few micro-batches are in flight.

        1f1b                                       eager-1f1b, slow link
        0.0  F0 F1 F2 B0 F3 B1 B2 B3               0.0  F0 F1 F2 F3 B0 B1 B2 B3
        1.0  F0 F1 B0 F2 B1 F3 B2 B3               1.0  F0 F1 F2 B0 F3 B1 B2 B3
        2.0  F0 B0 F1 B1 F2 B2 F3 B3               2.0  F0 B0 F1 B1 F2 B2 F3 B3

    Eager has one micro-batch more on the way for each slow link after the stage: it travels while
    the others are worked on.

    Source: Narayanan et al., Memory-Efficient Pipeline-Parallel DNN Training; Zhuang et al., On
    Optimizing the Communication of Model Parallelism.
    """
    return _merged(_passes(Pass.FORWARD, mine), _passes(Pass.BACKWARD, mine), num_warmup)


def zero_bubble(mine: Sequence[int], warmups: Sequence[int], stage: int) -> Order:
    """1F1B whose backwards send their input's gradient first; the weights' comes when it suits.

        0.0  F0 F1 F2 B0 F3 B1 B2 B3                      B and W in one: nobody waits for its B
        1.0  F0 F1 B0 F2 B1 W0 F3 B2 W1 B3 W2 W3
        2.0  F0 B0 F1 B1 F2 B2 W0 F3 B3 W1 W2 W3

    A weight pass is put off by as many micro-batches as the longest of the `warmups` is longer
    than this stage's: no rank has more in flight than one of that stage.

    Source: Qi et al., Zero Bubble Pipeline Parallelism, ZB-H1.
    """
    order = one_forward_one_backward(mine, warmups[stage])
    # No stage waits for the input gradient of the first one, so splitting there gains nothing.
    if stage == 0:
        return order
    return list(_with_weight_passes(order, mine, max(warmups) - warmups[stage]))


def _with_weight_passes(order: Order, mine: Sequence[int], num_behind: int) -> Iterator[Action]:
    num_backwards = 0
    for action in order:
        yield action
        if action.kind is Pass.BACKWARD:
            num_backwards += 1
            if num_backwards > num_behind:
                yield Action(Pass.WEIGHT, mine[num_backwards - num_behind - 1])
    # Those that were put off beyond the last backward; fewer where the step is short.
    for j in mine[max(0, len(mine) - num_behind) :]:
        yield Action(Pass.WEIGHT, j)


def group_sizes(widths: Sequence[int], num_microbatches: int) -> list[int]:
    """Cuts a step's micro-batches into groups; a group goes through one chunk, then the next.

    A group is large enough that its first micro-batch has passed all stages when its last one
    enters, and holds equally many for every replica. Left-over micro-batches enlarge the groups (an
    extra small group would leave ranks idle), so the groups may include micro-batches that do not
    exist.
    """
    # Equally many for every replica of every stage: a multiple of all widths.
    unit = lcm(*widths)
    # A group as large as the bundle fills all stages.
    least = divided_up(sum(widths), unit)
    num_units = max(least, divided_up(num_microbatches, unit))
    num_groups = num_units // least
    each, more = divmod(num_units, num_groups)
    return [(each + (i < more)) * unit for i in range(num_groups)]


def interleaved(
    widths: Sequence[int], chunks_per_stage: int, stage: int, replica: int, num_microbatches: int
) -> Order:
    """1F1B over several chunks per rank: a chunk is shorter, so the pipeline fills faster.

        two chunks, F0.1 is the forward of the second
        0.0  F0 F1 F0.1 F1.1 F2 B0.1 F3 B1.1 F2.1 B0 F3.1 B1 B2.1 B3.1 B2 B3
        1.0  F0 F1 F0.1 B0.1 F1.1 B1.1 F2 B0 F3 B1 F2.1 B2.1 F3.1 B3.1 B2 B3

    Before the first backward the last stage takes a group through all chunks but one, and each
    earlier stage two micro-batches more per device of the later stages. One would do for a steady
    state (see `num_warmups`; the other covers rounding), two leave nobody idle before it. The first
    stage has less than `chunks_per_stage` + 1 groups under way then, so that the last stage gets
    its gradients for the chunk before in time.

    Micro-batches that do not exist are left out at the end. Leaving all passes of a micro-batch
    out, on all ranks, adds no dependency: the order cannot get stuck where the full one cannot.

    Source: Narayanan et al., Efficient Large-Scale Language Model Training on GPU Clusters.
    """
    groups = group_sizes(widths, num_microbatches)
    num_ahead = (chunks_per_stage - 1) * groups[0] + 2 * sum(widths[stage + 1 :])
    mine = range(replica, sum(groups), widths[stage])
    forwards = _in_groups(Pass.FORWARD, mine, groups, range(chunks_per_stage))
    backwards = _in_groups(Pass.BACKWARD, mine, groups, range(chunks_per_stage)[::-1])
    order = _merged(list(forwards), list(backwards), divided_up(num_ahead, widths[stage]))
    # The orders were made for whole groups; see above why leaving out is safe.
    return [action for action in order if action.microbatch < num_microbatches]


def _in_groups(
    kind: Pass, mine: range, groups: Sequence[int], chunks: Sequence[int]
) -> Iterator[Action]:
    """Yields one group's micro-batches through each chunk, then the next group's."""
    first = 0
    for size in groups:
        # The step of `mine` is the stage's width, and each group is a multiple of that.
        of_group = mine[first // mine.step : (first + size) // mine.step]
        for chunk in chunks:
            yield from (Action(kind, j, chunk) for j in of_group)
        first += size
