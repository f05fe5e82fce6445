"""A step of stages that are cut by replay against one of stages cut by graph, at the same place.

    round 0   graph  replay        two ranks of one host, whose links are in its memory
    round 1   replay  graph        ...

Both have the same parameters in the same processes. Time is that of the step (from the first start
to the last end) and what the two ranks' own threads compute, which other work on the machine
disturbs less. Memory is the bytes of tensors that are alive, as in `in_flight`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor, nn
from torchvision.models import resnet50, vit_b_16

from benchmarks.cluster.forked import TIMEOUT_S, Seat, run_ranks
from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.alive import Alive
from benchmarks.workload.gpt import Gpt
from benchmarks.workload.ours import Pipe
from bundlerun.launcher.choices import Cutter
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.splits.models import make_stages
from bundlerun.workers.data.samples import Batch

CLAIM = "cut by replay, a step takes at most 1.01 of the time, and 1.02 of the memory, of a graph"
MOST_TIME, MOST_MEMORY = 1.01, 1.02
WAYS: Final[tuple[Cutter, Cutter]] = ("graph", "replay")
NUM_STAGES: Final = 2
NUM_MICROBATCHES = 4
NUM_ROUNDS = 12
_IMAGE_SIZE = 96
_LENGTH, _VOCABULARY = 64, 1024
_MIB = 2**20
_MBIT_PER_S = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, where both ways cut it, and a micro-batch."""

    name: str
    build: Callable[[], nn.Module]
    cut: str
    microbatch: Callable[[], Tensor]


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, _IMAGE_SIZE, _IMAGE_SIZE)


def _tokens(count: int) -> Tensor:
    return torch.randint(_VOCABULARY, (count, _LENGTH))


CASES = (
    Case(
        name="ResNet-50",
        build=partial(resnet50, num_classes=10),
        cut="layer3.0",
        microbatch=partial(_images, 8),
    ),
    Case(
        name="ViT-B",
        build=partial(vit_b_16, image_size=_IMAGE_SIZE, num_classes=10),
        cut="encoder.layers.encoder_layer_6",
        microbatch=partial(_images, 2),
    ),
    Case(
        name="GPT of 12 blocks",
        build=partial(Gpt, vocabulary=_VOCABULARY),
        cut="blocks.6",
        microbatch=partial(_tokens, 1),
    ),
)

skip_reason = why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What one way took on all ranks, in round after round."""

    seconds: Sequence[float]
    busy_s: Sequence[float]
    peaks: Sequence[int]
    """Of each stage, bytes."""

    @classmethod
    def of(cls, answers: Sequence[dict[str, Any]]) -> _Found:
        """From what the ranks have answered."""
        turns = list(zip(*(answer["turns"] for answer in answers), strict=True))
        return cls(
            seconds=[max(t["end"] for t in turn) - min(t["start"] for t in turn) for turn in turns],
            busy_s=[sum(t["busy"] for t in turn) for turn in turns],
            peaks=[answer["peak"] for answer in answers],
        )


def run(options: Options) -> None:
    """Measures all models, both ways in turn."""
    rows, results, checks = [], [], []
    for case in CASES:
        if not options.wants(case.name):
            continue
        rounds = options.rounds_or(NUM_ROUNDS)
        with open_hosts(1, Wire(mbit_per_s=_MBIT_PER_S)) as hosts:
            answers = run_ranks(hosts, (NUM_STAGES,), partial(_rank, case, rounds))
        graph, replay = (_Found.of([answer[way] for answer in answers]) for way in WAYS)
        took = _ratio(replay.seconds, graph.seconds)
        busy = _ratio(replay.busy_s, graph.busy_s)
        memory = max(b / a for a, b in zip(graph.peaks, replay.peaks, strict=True))
        rows.append(
            (
                case.name,
                1000 * median(graph.seconds), 1000 * median(replay.seconds), took,
                1000 * median(graph.busy_s), 1000 * median(replay.busy_s), busy,
                max(graph.peaks) / _MIB, max(replay.peaks) / _MIB, memory,
            )
        )  # fmt: skip
        results.append(
            {
                "model": case.name,
                "cut": case.cut,
                "graph": vars_of(graph),
                "replay": vars_of(replay),
                "time_ratio": took,
                "busy_ratio": busy,
                "memory_ratio": memory,
            }
        )
        checks += [
            Check(f"{case.name}: time of a step over a graph's, at most", took, MOST_TIME),
            Check(f"{case.name}: computed in it over a graph's, at most", busy, MOST_TIME),
            Check(f"{case.name}: peak memory over a graph's, at most", memory, MOST_MEMORY),
        ]
    print_table(
        (
            "", "graph, ms", "replay, ms", "ratio", "computing, ms", "replay, ms", "ratio",
            "peak, MiB", "replay, MiB", "ratio",
        ),
        rows,
    )  # fmt: skip
    settings = {"shape": "1,1", "num_microbatches": NUM_MICROBATCHES, "image_size": _IMAGE_SIZE}
    options.record("replay", {**settings, "length": _LENGTH, "results": results}, checks)


def vars_of(found: _Found) -> dict[str, object]:
    """It, as JSON has it."""
    return {"seconds": found.seconds, "busy_s": found.busy_s, "peak_bytes": found.peaks}


def _ratio(ones: Sequence[float], others: Sequence[float]) -> float:
    # Of turns next to each other: what slows the machine cancels out.
    return median(one / other for one, other in zip(ones, others, strict=True))


def _rank(case: Case, rounds: int, seat: Seat) -> dict[str, dict[str, Any]]:
    torch.manual_seed(1)
    model = case.build().train()
    batch = [Batch((case.microbatch(),), torch.zeros(1), 0) for _ in range(NUM_MICROBATCHES)]
    steps, counts = {}, {way: Alive() for way in WAYS}
    own: list[Tensor] = []
    for way in WAYS:
        stages = make_stages(
            model, cut=(case.cut,), num_stages=NUM_STAGES, inputs=batch[0].inputs, cutter=way
        )
        stage = stages[seat.env.rank].train()
        own += [*stage.parameters(), *stage.buffers()]
        pipe = Pipe(seat, Topology(Shape((1, 1)), (NUM_STAGES,)), [stage], "1f1b", name=way)
        steps[way] = partial(pipe.step_on, batch)
    found: dict[str, dict[str, Any]] = {way: {"turns": []} for way in WAYS}
    for is_counted in (False, True):
        # In the first step what stays is made: gradients, and what replay has noted.
        for way, step in steps.items():
            seat.barrier.wait(TIMEOUT_S)
            with counts[way]:
                step()
            if is_counted:
                found[way]["peak"] = counts[way].peak_bytes
            gradients = [p.grad for p in own if p.grad is not None]
            counts[way].leave_out([*own, *gradients, *(b.inputs[0] for b in batch)])
    for number in range(rounds):
        for way in reversed(WAYS) if number % 2 else WAYS:
            found[way]["turns"].append(_timed(seat, steps[way]))
    return found


def _timed(seat: Seat, step: Callable[[], object]) -> dict[str, float]:
    seat.barrier.wait(TIMEOUT_S)
    start, busy = time.perf_counter(), time.thread_time()
    step()
    return {
        "start": start,
        "end": time.perf_counter(),
        "busy": time.thread_time() - busy,
    }
