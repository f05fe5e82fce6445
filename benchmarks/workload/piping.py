"""One bundle whose stages sleep: a step of each schedule in turn, ours and torch's.

host 0   F0 F1 B0 F2 B1 ...
host 1      F0 B0 F1 B1 ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleZBVZeroBubble,
)

from benchmarks.cluster.forked import Seat, Timing, run_ranks, timings_by_scheme
from benchmarks.cluster.hosts import Wire, open_hosts
from benchmarks.network.wire import check
from benchmarks.workload.ours import Pipe
from benchmarks.workload.sleeping import SleepingPart
from bundlerun.launcher.choices import ScheduleName
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.model_costs import (
    Boundary,
    ModelCosts,
    Piece,
    Profile,
    ProfileKey,
    UpdateCosts,
)
from bundlerun.launcher.planning.outlook import Outlook


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """What the passes of one micro-batch take on a stage, seconds."""

    forward_s: float = 0.020
    input_s: float = 0.020
    weight_s: float = 0.020

    @classmethod
    def of(cls, total_s: float) -> StageTimes:
        """Three passes that take as long each."""
        return cls(forward_s=total_s / 3, input_s=total_s / 3, weight_s=total_s / 3)

    @property
    def total_s(self) -> float:
        """All passes."""
        return self.forward_s + self.input_s + self.weight_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A bundle, each stage on a host of its own."""

    shape: Shape = Shape((1, 1))
    times: tuple[StageTimes, ...] = (StageTimes(), StageTimes())
    activation_bytes: int
    num_microbatches: int
    mbit_per_s: float = 1000

    @property
    def no_communication_s(self) -> float:
        """A step of 1F1B where stages are alike and links take no time."""
        return (self.num_microbatches + self.shape.num_stages - 1) * self.times[0].total_s

    @property
    def narrowest_s(self) -> float:
        """Seconds per micro-batch of the stage that limits the throughput."""
        return max(
            t.total_s / width for t, width in zip(self.times, self.shape.widths, strict=True)
        )

    def chosen(self) -> ScheduleName:
        """The schedule that the planner takes, of this shape and with what the stages take."""
        pieces = tuple(
            Piece(
                forward_s=times.forward_s,
                backward_s=times.input_s + times.weight_s,
                weight_s=times.weight_s,
            )
            for times in self.times
        )
        sent = self.activation_bytes
        bounds = tuple(
            Boundary(name=f"{n}", forward_bytes=sent, backward_bytes=sent)
            for n in range(1, len(pieces))
        )
        costs = ModelCosts(samples=1, pieces=pieces, boundaries=bounds)
        key = ProfileKey(model="sleeping", device="none", versions="", precision="float32")
        profile = Profile(key=key, by_samples=(costs,), update=UpdateCosts())
        cluster = Cluster(
            kinds=(NodeKind(name="host", count=self.shape.num_stages, devices=1),),
            between=Link(bytes_per_s=self.mbit_per_s * 125e3),
        )
        request = Request(
            batch_size=self.num_microbatches,
            shape=self.shape,
            cuts=tuple(range(len(bounds))),
            samples=1,
        )
        outlook = Outlook(profile=profile, cluster=cluster, request=request)
        return outlook.best().plans[0].candidate.schedule

    def part(self, number: int, per_stage: int, stage: int) -> SleepingPart:
        """One of the parts that the model is cut into.

        Args:
            number: which, from the front.
            per_stage: parts on each stage, which share its time.
            stage: where it is.
        """
        is_last = number == Chunks(self.shape.num_stages, per_stage).num_chunks - 1
        times = self.times[stage]
        return SleepingPart(
            (1,) if is_last else (self.activation_bytes // 4,),
            forward_s=times.forward_s / per_stage,
            input_s=times.input_s / per_stage,
            weight_s=times.weight_s / per_stage,
        )


class Runner(Protocol):
    """A way to do a step; collective: every rank."""

    def step(self) -> None:
        """Forward and backward of all micro-batches; this is timed."""


class Ours:
    """`bundlerun.workers.pipeline.bundle`."""

    def __init__(
        self, setting: Setting, seat: Seat, schedule: ScheduleName, chunks_per_stage: int = 1
    ) -> None:
        topology = Topology(setting.shape, setting.shape.widths, chunks_per_stage)
        stage = topology.places[seat.env.rank].stage
        numbers = topology.chunks.on_stage(stage)
        parts = [setting.part(number, chunks_per_stage, stage) for number in numbers]
        self._pipe = Pipe(seat, topology, parts, schedule)
        self._num_microbatches = setting.num_microbatches

    def step(self) -> None:
        """Forward and backward of all micro-batches."""
        self._pipe.step(self._num_microbatches)


class OfTorch:
    """`torch.distributed.pipelining`, one rank per stage."""

    def __init__(
        self,
        setting: Setting,
        seat: Seat,
        make: Callable[..., Any],
        numbers: Callable[[int, int], Sequence[int]] = lambda rank, _: [rank],
    ) -> None:
        """Collective.

        Args:
            make: the class of the schedule.
            numbers: rank and number of ranks -> the parts of the model that are there.
        """
        rank, num_ranks = seat.env.rank, seat.env.world_size
        mine = list(numbers(rank, num_ranks))
        total = num_ranks * len(mine)
        stages = [_torch_stage(setting, number, total, len(mine), rank) for number in mine]
        self._schedule = make(
            stages if len(mine) > 1 else stages[0], setting.num_microbatches, loss_fn=_mean
        )
        count = setting.num_microbatches
        # torch's first stage takes the inputs, its last the targets; a V has both on one rank.
        self._inputs = (torch.zeros(count, 1),) if 0 in mine else ()
        self._target = torch.zeros(count) if total - 1 in mine else None

    def step(self) -> None:
        """Forward and backward of all micro-batches."""
        self._schedule.step(*self._inputs, target=self._target)


def _torch_stage(
    setting: Setting, number: int, total: int, per_stage: int, rank: int
) -> PipelineStage:
    # Without meta tensors torch runs a forward to infer shapes.
    between = torch.empty(1, setting.activation_bytes // 4, device="meta", requires_grad=True)
    small = torch.empty(1, 1, device="meta")
    return PipelineStage(
        setting.part(number, per_stage, rank),
        number,
        total,
        torch.device("cpu"),
        input_args=(small if number == 0 else between,),
        output_args=(small if number == total - 1 else between,),
    )


def _mean(output: Tensor, _: Tensor) -> Tensor:
    return output.mean()


def _v_shape(rank: int, num_ranks: int) -> Sequence[int]:
    # Down and up again: the first rank has the first part and the last.
    return [rank, 2 * num_ranks - 1 - rank]


class Alone:
    """The passes of a step of 1F1B one after the other, plain torch, nothing sent.

    What the nominal times do not have: the costs of Python, and of a processor that wakes up.
    """

    def __init__(self, setting: Setting, seat: Seat) -> None:
        self._part = setting.part(0, 1, 0)
        # The longest chain of 1F1B: all micro-batches on one stage, one through the others.
        self._count = setting.num_microbatches + setting.shape.num_stages - 1
        self._width = setting.activation_bytes // 4

    def step(self) -> None:
        """As many forwards and backwards as the longest chain of 1F1B has."""
        for _ in range(self._count):
            x = torch.zeros(1, self._width, requires_grad=True)
            torch.autograd.backward(self._part(x), torch.zeros(1, self._width))


Builder = Callable[[Setting, Seat], Runner]
ALONE: Mapping[str, Builder] = {"no communication": Alone}
BASELINES: Mapping[str, Builder] = {
    "torch GPipe": partial(OfTorch, make=ScheduleGPipe),
    "torch 1F1B": partial(OfTorch, make=Schedule1F1B),
    "torch ZBV": partial(OfTorch, make=ScheduleZBVZeroBubble, numbers=_v_shape),
}


def ours(*schedules: ScheduleName) -> dict[str, Builder]:
    """Our schedules by name; "interleaved" with two chunks per rank."""
    return {
        f"bundlerun {name}": partial(
            Ours, schedule=name, chunks_per_stage=2 if name == "interleaved" else 1
        )
        for name in schedules
    }


def measure(
    setting: Setting, runners: Mapping[str, Builder], num_rounds: int
) -> dict[str, list[Timing]]:
    """Times a step of every runner once a round, in turn, after one to warm up."""
    wire = Wire(mbit_per_s=setting.mbit_per_s)
    with open_hosts(setting.shape.num_stages, wire) as hosts:
        # A single stage sends nothing: there is no link to check.
        if setting.shape.num_stages > 1:
            check(hosts)
        answers = run_ranks(
            hosts, setting.shape.widths, partial(_rank, setting, runners, num_rounds)
        )
    return timings_by_scheme(answers)


def _rank(
    setting: Setting, runners: Mapping[str, Builder], num_rounds: int, seat: Seat
) -> list[dict[str, object]]:
    seat.join_torch()
    made = {name: build(setting, seat) for name, build in runners.items()}
    for runner in made.values():
        runner.step()
        dist.barrier()
    return seat.timed_in_turn({name: runner.step for name, runner in made.items()}, num_rounds)
