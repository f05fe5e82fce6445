"""A step of two stages that the planner has cut, against stages of equal parameter bytes.

    round 0   chosen  bytes        two ranks of one host, whose links are in its memory
    round 1   bytes  chosen        ...

Both have the same parameters in the same processes. The costs that the planner goes by are measured
before, in one process.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from statistics import median
from typing import Final

import torch
from torch import Tensor, nn
from torchvision.models import densenet121, resnet101, vgg16, vit_b_16

from benchmarks.cluster.forked import TIMEOUT_S, Seat, run_ranks
from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.gpt import Gpt
from benchmarks.workload.ours import Pipe
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.planning.candidate import Request
from bundlerun.launcher.planning.cluster import Cluster, Link, NodeKind
from bundlerun.launcher.planning.model_costs import Profile, ProfileKey, UpdateCosts
from bundlerun.launcher.planning.outlook import Outlook
from bundlerun.splits.balance import balanced_cuts
from bundlerun.splits.models import make_stages
from bundlerun.splits.profile.clock import HostClock
from bundlerun.splits.profile.costs import Batch as Sizes
from bundlerun.splits.profile.costs import measured_costs
from bundlerun.splits.profile.passes import Subject
from bundlerun.splits.profile.pieces import pieces_of
from bundlerun.workers.data.samples import Batch

CLAIM = "cut by measured times, a step is 1.25 times as fast as with stages of equal bytes"
FASTER, NEVER_BELOW, NUM_FASTER = 1.25, 0.98, 3
WAYS: Final = ("chosen", "bytes")
NUM_STAGES: Final = 2
NUM_MICROBATCHES = 8
NUM_ROUNDS = 8
_IMAGE_SIZE = 96
_LENGTH, _VOCABULARY = 64, 1024
_MBIT_PER_S = 10_000
_NO_TARGET = torch.zeros(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and a micro-batch."""

    name: str
    build: Callable[[], nn.Module]
    microbatch: Callable[[], Tensor]


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, _IMAGE_SIZE, _IMAGE_SIZE)


def _tokens(count: int) -> Tensor:
    return torch.randint(_VOCABULARY, (count, _LENGTH))


CASES = (
    Case(name="VGG-16", build=vgg16, microbatch=partial(_images, 2)),
    Case(name="ResNet-101", build=resnet101, microbatch=partial(_images, 4)),
    Case(
        name="ViT-B",
        build=partial(vit_b_16, image_size=_IMAGE_SIZE),
        microbatch=partial(_images, 2),
    ),
    Case(name="DenseNet-121", build=densenet121, microbatch=partial(_images, 4)),
    Case(
        name="GPT of 12 blocks",
        build=partial(Gpt, vocabulary=_VOCABULARY),
        microbatch=partial(_tokens, 1),
    ),
)

skip_reason = why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cuts:
    """Where each way cuts, and what is foreseen of it."""

    names: dict[str, str]
    step_s: dict[str, float]


def run(options: Options) -> None:
    """Measures all models, both ways in turn."""
    rows, results, checks, ratios = [], [], [], []
    for case in CASES:
        if not options.wants(case.name):
            continue
        cuts = _cuts(case)
        with open_hosts(1, Wire(mbit_per_s=_MBIT_PER_S)) as hosts:
            answers = run_ranks(
                hosts,
                (NUM_STAGES,),
                partial(_rank, case, cuts.names, options.rounds_or(NUM_ROUNDS)),
            )
        seconds = {
            way: [
                max(t["end"] for t in turn) - min(t["start"] for t in turn)
                for turn in zip(*(answer[way] for answer in answers), strict=True)
            ]
            for way in WAYS
        }
        # Of turns next to each other: what slows the machine cancels out.
        pairs = zip(seconds["bytes"], seconds["chosen"], strict=True)
        faster = median(other / own for other, own in pairs)
        ratios.append(faster)
        foreseen = cuts.step_s["bytes"] / cuts.step_s["chosen"]
        rows.append(
            (
                case.name,
                cuts.names["chosen"],
                1000 * median(seconds["chosen"]),
                cuts.names["bytes"],
                1000 * median(seconds["bytes"]),
                faster,
                foreseen,
            )
        )
        results.append(
            {
                "model": case.name,
                "cut": cuts.names,
                "foreseen_s": cuts.step_s,
                "seconds": seconds,
                "times_faster": faster,
            }
        )
        checks.append(Check(f"{case.name}: x equal bytes, at least", faster, NEVER_BELOW))
    if len(ratios) >= NUM_FASTER:
        third = sorted(ratios)[-NUM_FASTER]
        checks.append(Check(f"the {NUM_FASTER} that gain the most, at least", third, FASTER))
    print_table(
        ("", "chosen", "ms", "equal bytes", "ms", "times faster", "as foreseen"),
        rows,
    )
    settings = {"shape": "1,1", "num_microbatches": NUM_MICROBATCHES, "image_size": _IMAGE_SIZE}
    options.record("cuts", {**settings, "length": _LENGTH, "results": results}, checks)


def _cuts(case: Case) -> _Cuts:
    torch.manual_seed(1)
    torch.set_num_threads(1)
    model, given = case.build().train(), case.microbatch()
    pieces = pieces_of(model, "auto", (given,))
    subject = Subject(
        forward=pieces.forward,
        count=pieces.count,
        inputs=lambda: (given.clone(),),
        judge=lambda output: output.mean(),
    )
    samples = len(given)
    sizes = Sizes(samples=samples, input_bytes=given.nbytes, target_bytes=0)
    costs = measured_costs(pieces, subject, sizes, HostClock())
    key = ProfileKey(model=case.name, device="cpu", versions="", precision="float32")
    profile = Profile(key=key, by_samples=(costs,), update=UpdateCosts())
    kind = NodeKind(name="host", count=1, devices=NUM_STAGES)
    cluster = Cluster(kinds=(kind,), between=Link(bytes_per_s=_MBIT_PER_S * 125e3))
    request = Request(
        batch_size=NUM_MICROBATCHES * samples,
        shape=Shape((1,) * NUM_STAGES),
        schedule="1f1b",
        sync="local-master",
        samples=samples,
        recompute=frozenset(),
        has_snapshot=False,
    )
    outlook = Outlook(profile=profile, cluster=cluster, request=request)
    best = outlook.best().plans[0]
    (first,) = balanced_cuts([piece.parameter_bytes for piece in costs.pieces], NUM_STAGES)
    by_bytes = replace(best.candidate, cuts=(first - 1,))
    number = best.candidate.cuts[0]
    return _Cuts(
        names={
            "chosen": costs.boundaries[number].name,
            "bytes": costs.boundaries[first - 1].name,
        },
        step_s={
            "chosen": best.forecast.step_s,
            "bytes": outlook.forecast(by_bytes).step_s,
        },
    )


def _rank(
    case: Case, cuts: dict[str, str], rounds: int, seat: Seat
) -> dict[str, list[dict[str, float]]]:
    torch.manual_seed(1)
    model = case.build().train()
    batch = [Batch((case.microbatch(),), _NO_TARGET, 0) for _ in range(NUM_MICROBATCHES)]
    steps: dict[str, Callable[[], None]] = {}
    for way, cut in cuts.items():
        stages = make_stages(model, cut=(cut,), num_stages=NUM_STAGES, inputs=batch[0].inputs)
        stage = stages[seat.env.rank].train()
        pipe = Pipe(seat, Topology(Shape((1, 1)), (NUM_STAGES,)), [stage], "1f1b", name=way)
        steps[way] = partial(pipe.step_on, batch)
    for step in steps.values():
        seat.barrier.wait(TIMEOUT_S)
        step()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in reversed(WAYS) if number % 2 else WAYS:
            seat.barrier.wait(TIMEOUT_S)
            start = time.perf_counter()
            steps[way]()
            found[way].append({"start": start, "end": time.perf_counter()})
    return found
