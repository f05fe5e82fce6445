"""ResNet-50 on two nodes of two bundles, a slow link: images per second against DDP."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD
from torchvision.models import resnet50

from benchmarks.cluster.forked import Act, Running, Seat, Timing, run_ranks, timings_by_scheme
from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.network.wire import check
from benchmarks.results.draw import Bars, draw_bars
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.syncing import median_ms, ratio
from benchmarks.workload.torch_hybrid import TorchHybrid
from benchmarks.workload.training import FixedSteps
from bundlerun.launcher.choices import ExchangeDtype
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.samples import Batch

CLAIM = "ResNet-50 trains 1.5 times faster than with DDP, 3 times faster than per parameter"
PER_HOST = (4, 4)
MBIT_PER_S = 200
BATCH = 32
MICROBATCH = 4
IMAGE_SIZE = 64
NUM_CLASSES = 1000
LR = 0.01
NUM_ROUNDS = 3
NUM_BEHIND = 3
"""Steps that are timed in a row where each leaves something to the next."""
TARGETS = {"DDP, a rank per device": 1.5, "per parameter": 3.0}
OURS = "bundlerun 1,1"
BEHIND = f"{OURS}, behind the next forward"
FASTER_BEHIND = 1.8
"""Times faster than DDP with a rank per device."""
BYTES = {"bf16": 0.51, "int8": 0.26, "int4": 0.14, "powersgd:4": 0.03}
"""Over those of float32."""

skip_reason = why_not


@dataclass(frozen=True, slots=True)
class Inputs:
    """The samples of every step, the same for all schemes."""

    images: Tensor
    targets: Tensor
    run_dir: str

    def part(self, index: int, count: int) -> tuple[Tensor, Tensor]:
        """One of `count` equal parts."""
        return self.images.chunk(count)[index], self.targets.chunk(count)[index]

    def microbatches(self) -> list[Batch]:
        """All of them."""
        pairs = zip(self.images.split(MICROBATCH), self.targets.split(MICROBATCH), strict=True)
        return [Batch((images,), targets, 0) for images, targets in pairs]


class Scheme(Protocol):
    """A way to train; collective: every rank."""

    def step(self) -> None:
        """One step, optimizer included; this is timed."""


class Ours(FixedSteps):
    """The trainer, shape 1,1."""

    def __init__(
        self,
        inputs: Inputs,
        seat: Seat,
        *,
        exchange_dtype: ExchangeDtype = "float32",
        exchange: str = "all",
        is_behind: bool = False,
    ) -> None:
        form = exchange_dtype if exchange == "all" else exchange
        config = TrainConfig(
            data="synthetic",
            model="resnet50",
            shape=Shape((1, 1)),
            num_classes=NUM_CLASSES,
            batch_size=BATCH,
            microbatch_size=MICROBATCH,
            lr_schedule="constant",
            lr=LR,
            momentum=0.0,
            weight_decay=0.0,
            exchange_dtype=exchange_dtype,
            exchange=exchange,
            overlap_forward=is_behind,
            run_dir=f"{inputs.run_dir}/{form}{'-behind' if is_behind else ''}",
        )
        name = f"{form}/{is_behind}"
        super().__init__(seat, config, name, inputs.microbatches())
        self.is_behind = is_behind


class Plain:
    """Data parallel in plain torch; a subclass sums.

    Args:
        per_host: ranks of each host that take part; the others are idle.
    """

    def __init__(self, inputs: Inputs, seat: Seat, per_host: int = 4) -> None:
        num_ranks = per_host * seat.env.num_nodes
        self._is_idle = seat.env.local_rank >= per_host
        firsts = range(0, seat.env.world_size, seat.env.local_world_size)
        # On ranks outside torch gives a number.
        self.group: Any = dist.new_group([first + i for first in firsts for i in range(per_host)])
        # Only now: making a group is collective, idle ranks take part.
        if self._is_idle:
            return
        # The same on all ranks, as nothing broadcasts the parameters of a plain model.
        torch.manual_seed(0)
        self.model: nn.Module = resnet50(num_classes=NUM_CLASSES)
        self._optimizer = SGD(self.model.parameters(), lr=LR)
        index = seat.env.node * per_host + seat.env.local_rank
        self._images, self._targets = inputs.part(index, num_ranks)

    def step(self) -> None:
        """One step."""
        if self._is_idle:
            return
        self._optimizer.zero_grad()
        cross_entropy(self.model(self._images), self._targets).backward()
        self.sync()
        self._optimizer.step()

    def sync(self) -> None:
        """Sums the gradients where the backward has not."""


class Ddp(Plain):
    """torch's DistributedDataParallel."""

    def __init__(self, inputs: Inputs, seat: Seat, per_host: int = 4) -> None:
        super().__init__(inputs, seat, per_host)
        if not self._is_idle:
            self.model = DistributedDataParallel(self.model, process_group=self.group)


class PerParameter(Plain):
    """One `all_reduce` per parameter, after the backward."""

    def sync(self) -> None:
        """Sums the gradients."""
        for parameter in self.model.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad, group=self.group)


Builder = Callable[[Inputs, Seat], Scheme]
SCHEMES: Mapping[str, Builder] = {
    "DDP, a rank per device": Ddp,
    "DDP, a rank per bundle": partial(Ddp, per_host=2),
    "per parameter": PerParameter,
    "torch 1F1B and DDP": lambda inputs, seat: TorchHybrid(
        inputs.images, inputs.targets, seat, microbatch=MICROBATCH, lr=LR
    ),
    OURS: Ours,
    BEHIND: partial(Ours, is_behind=True),
    f"{OURS}, bf16": partial(Ours, exchange_dtype="bfloat16"),
    f"{OURS}, bf16, behind the next forward": partial(
        Ours, exchange_dtype="bfloat16", is_behind=True
    ),
    f"{OURS}, int8": partial(Ours, exchange_dtype="int8"),
    f"{OURS}, int4": partial(Ours, exchange_dtype="int4"),
    f"{OURS}, topk:8": partial(Ours, exchange="topk:8"),
    f"{OURS}, powersgd:4": partial(Ours, exchange="powersgd:4"),
}


def run(options: Options) -> None:
    """Measures all schemes in turn."""
    timings = measure(options.rounds_or(NUM_ROUNDS))
    bars = Bars("images per second", "ResNet-50, 64x64, 2 nodes of 2 bundles, 200 Mbit/s")
    rows, results = [], []
    for name, found in timings.items():
        ms = median_ms(found)
        faster = {baseline: ratio(timings[baseline], found) for baseline in TARGETS}
        share = _sent(found) / _sent(timings[OURS])
        rows.append((name, 1000 * BATCH / ms, ms, share, *faster.values()))
        told = {"scheme": name, "ms": ms, "images_per_s": 1000 * BATCH / ms, "bytes_share": share}
        results.append(told | faster)
        bars.add(name, "median", 1000 * BATCH / ms)
    head = ("scheme", "images/s", "ms a step", f"bytes / {OURS}")
    print_table((*head, *(f"x {name}" for name in TARGETS)), rows)
    checks = [
        Check(f"times faster than {name}, at least", ratio(timings[name], timings[OURS]), target)
        for name, target in TARGETS.items()
    ]
    first = next(iter(TARGETS))
    faster_behind = ratio(timings[first], timings[BEHIND])
    what = f"{BEHIND}: times faster than {first}, at least"
    checks.append(Check(what, faster_behind, FASTER_BEHIND))
    checks += [
        Check(
            f"{form}: bytes between nodes over those of float32, at most",
            _sent(timings[f"{OURS}, {form}"]) / _sent(timings[OURS]),
            target,
        )
        for form, target in BYTES.items()
    ]
    options.record("resnet", {"batch": BATCH, "mbit_per_s": MBIT_PER_S, "rows": results}, checks)
    draw_bars("resnet", bars, options)


def _sent(timings: Sequence[Timing]) -> float:
    """Bytes that a node has sent, as the kernel counts them."""
    return float(median(timing.sent_bytes for timing in timings))


def measure(num_rounds: int) -> dict[str, list[Timing]]:
    """A step of every scheme once a round, in turn, after one to warm up."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((BATCH, 3, IMAGE_SIZE, IMAGE_SIZE), generator=generator)
    targets = torch.randint(NUM_CLASSES, (BATCH,), generator=generator)
    with (
        tempfile.TemporaryDirectory(prefix="bundlerun-") as folder,
        open_hosts(len(PER_HOST), Wire(mbit_per_s=MBIT_PER_S)) as hosts,
    ):
        check(hosts)
        rank = partial(_rank, Inputs(images, targets, folder), num_rounds)
        answers = run_ranks(hosts, PER_HOST, rank)
    return timings_by_scheme(answers)


def _rank(inputs: Inputs, num_rounds: int, seat: Seat) -> Sequence[dict[str, object]]:
    seat.join_torch()
    made = {name: build(inputs, seat) for name, build in SCHEMES.items()}
    for scheme in made.values():
        scheme.step()
        # So that no scheme warms up while ranks are still busy with the one before.
        dist.barrier()
    acts: dict[str, Act] = {
        name: Running(scheme.step, scheme.settle, NUM_BEHIND)
        if isinstance(scheme, Ours) and scheme.is_behind
        else scheme.step
        for name, scheme in made.items()
    }
    return seat.timed_in_turn(acts, num_rounds)
