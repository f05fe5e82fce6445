"""How much of the copies between GPU and CPU lies under computing: of links, and of a sync.

The two ranks share the GPU and take turns on it: what either of them computes counts. Micro-batches
are so large that the GPU, and not the CPU that gives it work, has to be waited for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torchvision.models import resnet18

from benchmarks.cluster.forked import Seat
from benchmarks.gpu.bench import Bench, turn
from benchmarks.gpu.profiled import Span, joined, seen, share_under
from benchmarks.gpu.ranks import run_ranks
from benchmarks.workload.training import FixedSteps
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from bundlerun.workers.data.samples import Batch

_LEAST = 0.85
_STEPS = 3
_SHAPES = {"links, shape 1,1": (1, 1), "sync, shape 1": (1,)}


def run(bench: Bench) -> None:
    """A pipeline over CPU memory, then two replicas over it; two ranks each."""
    assert resnet18  # loaded before the ranks are forked, not by each of them
    for what, widths in _SHAPES.items():
        config = _config(bench, widths)
        found = run_ranks(bench, f"overlap{len(widths)}", 2, partial(_rank, bench, config))
        computing = joined(_spans(span for rank in found for span in rank["computing"]))
        for number, rank in enumerate(found):
            share = share_under(_spans(rank["copies"]), computing)
            what_of = f"{what}: of copies under computing, rank {number}"
            bench.on_gpu.at_least(what_of, share, _LEAST)


def _spans(found: Iterable[Sequence[float]]) -> list[Span]:
    """Of a rank's answer, in which they are lists."""
    return [(start, end) for start, end in found]


def _config(bench: Bench, widths: Sequence[int]) -> TrainConfig:
    size, batch, microbatch = bench.sized((224, 512, 128), (32, 4, 2))
    return TrainConfig(
        data="synthetic",
        model=bench.sized("resnet50", "resnet18"),
        shape=Shape(tuple(widths)),
        num_classes=10,
        image_size=size,
        batch_size=batch,
        microbatch_size=microbatch,
        transport="cpu",
        sync="local-master",
        snapshot="off",
        run_dir=str(bench.disk / "overlap"),
    )


def _rank(bench: Bench, config: TrainConfig, seat: Seat) -> Any:  # noqa: ANN401
    size = config.samples_per_microbatch
    images = torch.randn(size, 3, config.image_size, config.image_size)
    if bench.is_gpu:  # as the loader gives them
        images = images.pin_memory()
    batch = Batch((images,), torch.arange(size) % 10, 0)
    samples = [batch] * (config.batch_size // size)
    steps = FixedSteps(seat, config, "overlap", samples)
    turn(steps.step, 2)()
    found = seen(bench, turn(steps.step, bench.sized(_STEPS, 1)))
    return {
        "copies": [*found.copies_out, *found.copies_in],
        "computing": joined(found.kernels),
    }
