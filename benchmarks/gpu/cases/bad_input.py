"""Runs that cannot go well end at once, with one line that says what to change, and its code.

All of them start together: none trains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.jobs import SMALL, Job

_LIMIT_S = 40.0


@dataclass(frozen=True, slots=True)
class Bad:
    """What is wrong, the options, the code and the words that are wanted; where it can be had."""

    what: str
    options: Sequence[str]
    code: int
    words: str
    devices: Sequence[str] | None = None
    visible: str | None = None
    needs_gpu: bool = False


_LARGE = (
    "--model=resnet152",
    "--shape=1",
    "--batch-size=4096",
    "--microbatch-size=4096",
    "--synthetic-samples=4096",
    "--max-steps=1",
    "--no-validate",
)
BAD = (
    Bad("more than the GPU's memory", _LARGE, 2, "--microbatch-size", needs_gpu=True),
    Bad(
        "--devices gpu, and none visible",
        (*SMALL, "--shape=1"),
        2,
        "--devices cpu",
        devices=("--devices=gpu",),
        visible="",
    ),
    Bad(
        "float16 on a CPU",
        (*SMALL, "--shape=1", "--precision=float16"),
        2,
        "float16",
        devices=("--devices=cpu", "--slots=1"),
    ),
    Bad("a shape for more ranks than there are", (*SMALL, "--shape=1,1,1"), 3, "1,1,1"),
)


def run(bench: Bench) -> None:
    """Starts all, then looks at how they ended."""
    started = [
        (bad, _started(bench, number, bad))
        for number, bad in enumerate(BAD)
        if bench.is_gpu or not bad.needs_gpu
    ]
    for bad, job in started:
        code = job.wait(bench.limit_s(_LIMIT_S))
        said = next((line for line in job.output.splitlines() if bad.words in line), "")
        starts = len(job.events("starts"))
        bench.said.holds(
            bad.what,
            code == bad.code and bool(said) and "Traceback" not in job.output and starts <= 1,
            f"code {code}, {max(starts, 1)} attempt(s): {said or 'not said'}",
            f"code {bad.code}, {bad.words!r} named, one attempt",
        )
    if not bench.is_gpu:
        bench.on_gpu.cannot("more than the GPU's memory", "code 2 at once")


def _started(bench: Bench, number: int, bad: Bad) -> Job:
    environ = {} if bad.visible is None else {"CUDA_VISIBLE_DEVICES": bad.visible}
    return Job(bench, f"bad{number}", bad.options, environ=environ, devices=bad.devices)
