"""Several ranks on one GPU train what one process trains on the CPU; all runs at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.jobs import SMALL, Job

_LIMIT_S = 75.0
_NUM_STEPS = 6
_EXACT = (*SMALL, "--precision=float64", f"--max-steps={_NUM_STEPS}", "--lr=0.05")
_RESNET = (
    "--model=resnet18",
    "--image-size=64",
    "--augment=none",
    "--batch-size=64",
    "--microbatch-size=16",
    "--synthetic-samples=384",
    "--no-validate",
    f"--max-steps={_NUM_STEPS}",
    "--lr=0.01",
)
_CUT = ("--shape=1,1", "--cut=third")


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is trained: options, ranks."""

    options: Sequence[str]
    num_ranks: int
    is_tiny: bool = False
    """Whether it is run without a GPU, too."""


WAYS: Mapping[str, Way] = {
    "shape 1": Way(("--shape=1",), 1),
    "shape 1,1": Way((*_CUT, "--schedule=1f1b"), 2, is_tiny=True),
    "shape 1,1, from GPU to GPU": Way((*_CUT, "--transport=ipc"), 2),
    "shape 1,1, two bundles": Way((*_CUT, "--verify-replicas"), 4),
    "shape 1,1, zero-bubble": Way((*_CUT, "--schedule=zero-bubble"), 2),
    "shape 1,1, 2 chunks": Way(("--shape=1,1", "--chunks=2"), 2),
}


def run(bench: Bench) -> None:
    """float64 against the CPU, ResNet-18 in float32 against one stage."""
    on_cpu = ("--devices=cpu", "--slots=1")
    reference = Job(bench, "reference", (*_EXACT, "--shape=1"), devices=on_cpu)
    exact = {
        name: _started(bench, f"exact{number}", _EXACT, way)
        for number, (name, way) in enumerate(WAYS.items())
        if bench.is_gpu or way.is_tiny
    }
    whole = halves = None
    if bench.is_gpu:
        whole = _started(bench, "whole", _RESNET, Way(("--shape=1",), 1))
        halves = _started(bench, "halves", _RESNET, Way(("--shape=1,1",), 2))
    reference.succeed(bench.limit_s(_LIMIT_S))
    for name in WAYS:
        if name in exact:
            _compare(bench, f"{name}, float64 against the CPU", exact[name], reference, 1e-8)
        else:
            bench.on_gpu.cannot(f"{name}, float64 against the CPU", "<= 1e-08")
    if whole is not None and halves is not None:
        whole.succeed(bench.limit_s(_LIMIT_S))
        _compare(bench, "ResNet-18 float32, 1,1 against 1", halves, whole, 1e-3)


def _started(bench: Bench, name: str, options: Sequence[str], way: Way) -> Job:
    words = (*options, "--transport=cpu", *way.options)
    return Job(bench, name, words, num_ranks=way.num_ranks)


def _compare(bench: Bench, what: str, job: Job, other: Job, most: float) -> None:
    code = job.wait(bench.limit_s(_LIMIT_S))
    losses, wanted = job.losses(), other.losses()
    if code or len(losses) != len(wanted) or len(wanted) != _NUM_STEPS:
        text = f"code {code}, {len(losses)} steps"
        bench.said.holds(what, False, text, f"code 0, {_NUM_STEPS} steps")
        return
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, wanted, strict=True))
    bench.said.at_most(f"{what}: loss, relative", worst, most)
