"""The one place where the benchmarks touch our sync and our schedules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, get_args

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, Optimizer

from benchmarks.cluster.forked import TIMEOUT_S, Seat
from bundlerun.launcher.choices import (
    WITHOUT_EXCHANGE,
    ExchangeDtype,
    ScheduleName,
    SchemeChoice,
    SchemeName,
)
from bundlerun.launcher.layout.bucket_size import bucket_bytes
from bundlerun.launcher.layout.exchange_form import ExchangeForm
from bundlerun.launcher.layout.schedule import Pipeline
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.workers.data.samples import Batch
from bundlerun.workers.model.forwards import Recomputed
from bundlerun.workers.pipeline.arithmetic import Arithmetic
from bundlerun.workers.pipeline.bundle import Bundle
from bundlerun.workers.pipeline.wires import Wires
from bundlerun.workers.rank.groups import make_groups, make_links
from bundlerun.workers.rank.meters import Meters
from bundlerun.workers.recipe import DataInfo, DataSets
from bundlerun.workers.step import StepShare, StepWork
from bundlerun.workers.sync.gradient_sync import GradientSync, SyncSettings
from bundlerun.workers.sync.schemes import Ways

MODES: Final[tuple[SchemeName, ...]] = get_args(SchemeName)
SHORT_NAMES: Final[dict[ExchangeDtype, str]] = {"float32": "", "bfloat16": "bf16"}
"""Where tables have another name, or none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncChoice:
    """How gradients are summed: the options of `bundlerun.workers.train`."""

    mode: SchemeChoice = "auto"
    exchange_dtype: ExchangeDtype = "float32"
    bucket_mb: float = 0.0
    name_apart: str = ""
    """Of one of several that are alike in all else."""

    @property
    def name(self) -> str:
        """What tables call it."""
        form = SHORT_NAMES.get(self.exchange_dtype, self.exchange_dtype)
        return f"bundlerun {self.mode}" + (f", {form}" if form else "")


def choices(
    modes: Sequence[SchemeChoice], dtypes: Sequence[ExchangeDtype] = ("float32",)
) -> list[SyncChoice]:
    """Every mode with every dtype that it can have."""
    return [
        SyncChoice(mode=mode, exchange_dtype=dtype)
        for mode in modes
        for dtype in dtypes
        if mode not in WITHOUT_EXCHANGE or dtype == "float32"
    ]


class Sync:
    """Our sync of one stage with all its replicas, one rank each.

    Args:
        seat: this rank; collective.
        parameters: whose gradients.
        choice: how.
    """

    def __init__(self, seat: Seat, parameters: Sequence[Parameter], choice: SyncChoice) -> None:
        topology = Topology(Shape((1,)), devices_per_node(seat))
        place = topology.places[seat.env.rank]
        # A name for each choice: their communicators must not meet in the store.
        network = seat.network(f"ours/{choice.name}/{choice.bucket_mb}/{choice.name_apart}")
        ways = Ways.of(choice.mode, topology, place)
        self._parameters = list(parameters)
        self.own = self._sync = GradientSync(
            [self._parameters],
            num_extra=1,
            ways=ways,
            groups=make_groups(topology, place, network, ways.members).legs,
            device=torch.device("cpu"),
            settings=SyncSettings(
                bucket_bytes=bucket_bytes(choice.bucket_mb, seat.env.num_nodes),
                form=ExchangeForm(choice.exchange_dtype),
                timeout_s=TIMEOUT_S,
            ),
            meters=Meters(),
        )

    @property
    def chosen(self) -> str:
        """The mode that `auto` has measured to be the fastest."""
        return "" if self._sync.choice is None else self._sync.choice.scheme

    def start_step(self) -> None:
        """Clears gradients."""
        self._sync.start_step()

    def arm(self) -> None:
        """The next backward is the last."""
        self._sync.arm(0)

    def finish(self) -> None:
        """Waits for the sums."""
        self._sync.finish()
        self._sync.read()

    def fill(self, gradients: Sequence[Tensor]) -> None:
        """Puts gradients there, as backwards before the last one do."""
        self.start_step()
        torch.autograd.backward(self._parameters, gradients)


class Pipe:
    """One rank of one bundle, performing one of our schedules.

    Args:
        seat: this rank; collective.
        topology: one bundle, and chunks.
        parts: of the model on this rank, in order.
        schedule: its name.
        recomputes: whether the activations are computed again in the backward.
        name: of one of several that are alike in all else.
    """

    def __init__(
        self,
        seat: Seat,
        topology: Topology,
        parts: Sequence[nn.Module],
        schedule: ScheduleName,
        *,
        recomputes: bool = False,
        name: str = "",
    ) -> None:
        place = topology.places[seat.env.rank]
        what = f"{schedule}/{topology.chunks_per_stage}/{recomputes}/{name}"
        network = seat.network(f"pipe/{what}")
        self._num_mine = topology.shape.widths[place.stage]
        self._place = place
        links = make_links(topology, place, network)
        pipeline, device = Pipeline.of(topology, schedule), torch.device("cpu")
        self._bundle = Bundle(
            wires=Wires(topology, place, links, pipeline, device),
            pipeline=pipeline,
            stage=nn.ModuleList(parts),
            forwards=[Recomputed(p, device, begin_again=_nothing) for p in parts]
            if recomputes
            else parts,
            recipe=_MeanLoss(),
            arithmetic=Arithmetic(device, "float32"),
            meters=Meters(),
        )

    def step(self, num_microbatches: int) -> None:
        """Forward and backward of micro-batches of one sample."""
        one = Batch((torch.zeros(1, 1),), torch.zeros(1, dtype=torch.long), 0)
        self.step_on([one] * num_microbatches)

    def step_on(self, batches: Sequence[Batch]) -> None:
        """Forward and backward of these micro-batches; all ranks give the same."""
        sizes = [len(batch.target) for batch in batches]
        work = StepWork(seed=0, step=0, first=0, sizes=sizes, num_samples=sum(sizes))
        # Replicas of a stage take the micro-batches alternately.
        own = iter(batches[self._place.replica :: self._num_mine])
        self._bundle.train(work, own, StepShare())


def _nothing() -> None:
    pass


class _MeanLoss:
    """A recipe of which only the loss is used."""

    unit = "samples"

    def check(self) -> None:
        """Nothing to check."""

    def open_data(self) -> DataSets:
        """There is none."""
        raise NotImplementedError

    def model(self, info: DataInfo) -> nn.Module:
        """There is none."""
        raise NotImplementedError

    def loss(self, output: object, target: Tensor) -> Tensor:
        """The mean of the output."""
        assert isinstance(output, Tensor)
        return output.mean()

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """Not used."""
        return SGD(p for _, p in parameters)


def devices_per_node(seat: Seat) -> tuple[int, ...]:
    """Ranks of every host, which all have as many."""
    return (seat.env.local_world_size,) * seat.env.num_nodes
