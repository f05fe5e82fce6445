"""A step of two stages that the planner has cut, against stages of equal parameter bytes.

    round 0   chosen  bytes        two ranks of one host, whose links are in its memory
    round 1   bytes  chosen        two rounds are one ratio: what changes evenly cancels out
    round 2   chosen  bytes        ...

Both have the same parameters in the same processes. The costs that the planner goes by are measured
before, in one process. Where both ways cut at the same place, it is measured once, and the ratio is
1. One model has its cut a second time, which tells how far two equal things are apart here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
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
from bundlerun.launcher.planning.model_costs import ModelCosts, Profile, ProfileKey, UpdateCosts
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
ALIKE = 0.02
"""How far the same cut, measured twice, may be from itself."""
CHOSEN, BYTES, AGAIN = "chosen", "bytes", "again"
NEIGHBOURS: Final = {"earlier": -0.05, "later": 0.05}
"""Cuts next to the chosen one, by how much of the whole model's time the first stage has more."""
NUM_STAGES: Final = 2
NUM_MICROBATCHES = 8
NUM_ROUNDS = 8
_IMAGE_SIZE = 224
"""That these models are made for; in small images the last layers take more of the time."""
_LENGTH, _VOCABULARY = 64, 1024
_MBIT_PER_S = 10_000
_TIMEOUT_S = 1800.0
"""Of all rounds of a model, on a machine that does much else."""
_NO_TARGET = torch.zeros(1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model and a micro-batch.

    Args:
        name: for tables.
        build: makes it.
        microbatch: makes its input.
        has_neighbours: whether cuts next to the chosen one are measured, too.
        is_control: whether the chosen one is measured a second time.
    """

    name: str
    build: Callable[[], nn.Module]
    microbatch: Callable[[], Tensor]
    has_neighbours: bool = False
    is_control: bool = False


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, _IMAGE_SIZE, _IMAGE_SIZE)


def _tokens(count: int) -> Tensor:
    return torch.randint(_VOCABULARY, (count, _LENGTH))


CASES = (
    Case(name="VGG-16", build=vgg16, microbatch=partial(_images, 1)),
    Case(
        name="ResNet-101",
        build=resnet101,
        microbatch=partial(_images, 1),
        has_neighbours=True,
    ),
    Case(name="ViT-B", build=vit_b_16, microbatch=partial(_images, 1)),
    Case(name="DenseNet-121", build=densenet121, microbatch=partial(_images, 1)),
    Case(
        name="GPT of 12 blocks",
        build=partial(Gpt, vocabulary=_VOCABULARY),
        microbatch=partial(_tokens, 1),
        is_control=True,
    ),
)

skip_reason = why_not


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cuts:
    """Where each way cuts, and what is foreseen of it; and less than what no cut can take."""

    names: dict[str, str]
    step_s: dict[str, float]
    bound_s: float

    @property
    def is_same(self) -> bool:
        """Whether both cut at one place."""
        return self.names[CHOSEN] == self.names[BYTES]

    def times_faster(self, way: str = CHOSEN) -> float:
        """As foreseen, than with equal bytes."""
        return self.step_s[BYTES] / self.step_s[way]

    @property
    def most(self) -> float:
        """How many times as fast as with equal bytes any cut could be."""
        return self.step_s[BYTES] / self.bound_s


def run(options: Options) -> None:
    """Measures all models, all ways in turn."""
    rows, results, checks, gains = [], [], [], []
    for case in CASES:
        if not options.wants(case.name):
            continue
        cuts = _cuts(case)
        seconds = _measured(case, cuts, options.rounds_or(NUM_ROUNDS))
        own = seconds[CHOSEN]
        others = own if cuts.is_same else seconds[BYTES]
        faster = ratio(others, own)
        print(f"{case.name}: {faster:.3f} times faster, at most {cuts.most:.3f}", flush=True)
        gains.append((faster, case.name, cuts.most))
        rows.append(
            (
                case.name,
                cuts.names[CHOSEN],
                1000 * median(own),
                "the same" if cuts.is_same else cuts.names[BYTES],
                1000 * median(others),
                faster,
                cuts.times_faster(),
                cuts.most,
            )
        )
        results.append(
            {
                "model": case.name,
                "cut": cuts.names,
                "foreseen_s": cuts.step_s,
                "bound_s": cuts.bound_s,
                "seconds": seconds,
                "times_faster": faster,
                "at_most": cuts.most,
            }
        )
        checks.append(Check(f"{case.name}: x equal bytes, at least", faster, NEVER_BELOW))
        if case.is_control:
            off = abs(ratio(seconds[AGAIN], own) - 1)
            checks.append(Check(f"{case.name}: one cut, twice, apart by at most", off, ALIKE))
        for way in NEIGHBOURS if case.has_neighbours else ():
            other = ratio(seconds[way], own)
            print(
                f"{case.name}, {way}, at {cuts.names[way]}: {other:.3f} x the chosen cut's step, "
                f"foreseen {cuts.step_s[way] / cuts.step_s[CHOSEN]:.3f}",
                flush=True,
            )
            checks.append(Check(f"{case.name}: {way} x chosen, at least", other, NEVER_BELOW))
    if len(gains) >= NUM_FASTER:
        third, name, most = sorted(gains)[-NUM_FASTER]
        checks.append(Check(f"the {NUM_FASTER} that gain the most, at least", third, FASTER))
        if third < FASTER:
            print(f"{name} is the third; by its costs no cut is more than {most:.2f} x", flush=True)
    head = ("", "chosen", "ms", "equal bytes", "ms", "times faster", "as foreseen", "any cut")
    print_table(head, rows)
    settings = {"shape": "1,1", "num_microbatches": NUM_MICROBATCHES, "image_size": _IMAGE_SIZE}
    options.record("cuts", {**settings, "length": _LENGTH, "results": results}, checks)


def ratio(others: Sequence[float], own: Sequence[float]) -> float:
    """How many times as long the others took: the median over rounds next to each other.

    In one of the two the others went first, in the other one second. So what slows the machine
    down, or comes with the order, is in both alike.
    """
    pairs = list(zip(others, own, strict=True))
    if len(pairs) == 1:
        return others[0] / own[0]
    return median((a + c) / (b + d) for (a, b), (c, d) in pairwise(pairs))


def _measured(case: Case, cuts: _Cuts, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of each way, in each round; equal bytes only where that is another cut."""
    names = dict(cuts.names)
    if cuts.is_same:
        del names[BYTES]
    if case.is_control:
        names[AGAIN] = names[CHOSEN]
    with open_hosts(1, Wire(mbit_per_s=_MBIT_PER_S)) as hosts:
        answers = run_ranks(
            hosts, (NUM_STAGES,), partial(_rank, case, names, rounds), timeout_s=_TIMEOUT_S
        )
    return {
        way: [
            max(t["end"] for t in turn) - min(t["start"] for t in turn)
            for turn in zip(*(answer[way] for answer in answers), strict=True)
        ]
        for way in names
    }


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
    search = outlook.best()
    best = search.plans[0]
    (first,) = balanced_cuts([piece.parameter_bytes for piece in costs.pieces], NUM_STAGES)
    numbers = {CHOSEN: best.candidate.cuts[0], BYTES: first - 1}
    if case.has_neighbours:
        numbers |= {way: _moved(costs, numbers[CHOSEN], by) for way, by in NEIGHBOURS.items()}
    step_s = {
        way: outlook.forecast(replace(best.candidate, cuts=(number,))).step_s
        for way, number in numbers.items()
    }
    return _Cuts(
        names={way: costs.boundaries[number].name for way, number in numbers.items()},
        step_s=step_s,
        bound_s=search.bound_s,
    )


def _moved(costs: ModelCosts, number: int, share: float) -> int:
    """The boundary before which there is that much more of the model's time than before another."""
    times = list(accumulate(piece.forward_s + piece.backward_s for piece in costs.pieces))
    wanted = times[number] + share * times[-1]
    return min(range(len(costs.boundaries)), key=lambda i: abs(times[i] - wanted))


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
    found: dict[str, list[dict[str, float]]] = {way: [] for way in steps}
    for number in range(rounds):
        for way in reversed(steps) if number % 2 else steps:
            seat.barrier.wait(TIMEOUT_S)
            start = time.perf_counter()
            steps[way]()
            found[way].append({"start": start, "end": time.perf_counter()})
    return found
