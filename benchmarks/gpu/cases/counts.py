"""What the trainer asks of the device beyond a plain loop: waits per step, kernels.

Of two lengths of a step the differences are taken, so that what happens once per step and what
happens once per micro-batch come apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

from benchmarks.gpu.bench import Bench, turn
from benchmarks.gpu.profiled import Counts, counts_of
from benchmarks.gpu.trained import Load, Ours, PlainLoop, load_of

_FEW, _MANY = 2, 4
_WARM_UP = 3
_MOST_WAITS = 2
_MOST_PER_MICROBATCH, _MOST_PER_STEP = 12, 30
_WAYS: Mapping[str, Mapping[str, Any]] = {"alone": {}, "with --clip-norm": {"clip_norm": 1.0}}


def run(bench: Bench) -> None:
    """Plain, ours, ours with clipping."""
    load = load_of(bench, microbatch=8, num_microbatches=_FEW, precision="float32")
    longer = replace(load, num_microbatches=_MANY)
    plain = [_count(bench, PlainLoop(each, bench.device).step) for each in (load, longer)]
    kind = bench.sized("kernels", "operations")
    for name, options in _WAYS.items():
        ours = [_count_ours(bench, each, options) for each in (load, longer)]
        more = [own.operations - other.operations for own, other in zip(ours, plain, strict=True)]
        per_microbatch = (more[1] - more[0]) / (_MANY - _FEW)
        per_step = more[0] - _FEW * per_microbatch
        bench.said.at_most(f"{name}: waits per step", ours[1].waits, _MOST_WAITS)
        bench.said.at_most(
            f"{name}: {kind} more per micro-batch", per_microbatch, _MOST_PER_MICROBATCH
        )
        bench.said.at_most(f"{name}: {kind} more per step", per_step, _MOST_PER_STEP)


def _count_ours(bench: Bench, load: Load, options: Mapping[str, Any]) -> Counts:
    with closing(Ours(replace(load, options=tuple(options.items())))) as ours:
        return _count(bench, ours.step)


def _count(bench: Bench, step: Callable[[], object]) -> Counts:
    """Counts of one step, behind those that choose kernels and make the optimizer's state."""
    turn(step, _WARM_UP)()
    return counts_of(bench, step)
