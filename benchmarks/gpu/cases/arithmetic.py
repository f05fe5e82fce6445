"""bfloat16 against float32, what --compile gains and compiles, and the same bits twice."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import partial
from hashlib import sha256

import torch

from benchmarks.gpu.bench import Bench, ratio, turn
from benchmarks.gpu.forked import in_fork
from benchmarks.gpu.trained import Load, Ours, load_of
from bundlerun.launcher.choices import Precision

_STEPS = 20
_FEW_STEPS = 4
_TURN = 2
_LOW: tuple[Precision, ...] = ("bfloat16", "float16")


def run(bench: Bench) -> None:
    """Each in a process of its own: switches of torch are for a whole process."""
    load = load_of(bench, num_microbatches=2, microbatch=32)
    num_steps = bench.sized(_STEPS, _FEW_STEPS)
    exact = in_fork(partial(_last_loss, load, num_steps))
    for kind in _LOW:
        what = f"{kind}: loss after {num_steps} steps, off by"
        if kind == "float16" and not bench.is_gpu:  # the stand-in has bfloat16 only
            bench.on_gpu.cannot(what, "<= 5 %")
            continue
        low = replace(load, precision=kind, channels_last=True)
        found = in_fork(partial(_last_loss, low, num_steps))
        bench.said.at_most(what, 100 * abs(found - exact) / abs(exact), 5, "%")
    sure = replace(load, options=(("deterministic", True),))
    first, second = (in_fork(partial(_bits, sure)) for _ in range(2))
    same = first == second
    bench.said.holds("--deterministic twice", same, "same" if same else "other bits", "same")
    if bench.is_gpu:
        gained, num_graphs = in_fork(partial(_compiled, bench))
        bench.on_gpu.at_least("--compile: times as fast", gained, 1.1)
        bench.on_gpu.at_most("--compile: compiled again for a short micro-batch", num_graphs, 1)
    else:
        bench.on_gpu.cannot("--compile: times as fast", ">= 1.1")
        bench.on_gpu.cannot("--compile: compiled again for a short micro-batch", "<= 1")


def _last_loss(load: Load, num_steps: int) -> float:
    with closing(Ours(load)) as ours:
        turn(ours.step, num_steps - 1)()
        sums = ours.step().sums
    assert sums is not None, "its only stage is the last"
    return sums.loss


def _bits(load: Load) -> str:
    """A word for the state after some steps."""
    with closing(Ours(load)) as ours:
        turn(ours.step, 5)()
        found = sha256()
        for name, tensor in sorted(ours.trainer.state().items()):
            found.update(name.encode())
            found.update(
                tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            )
        return found.hexdigest()


def _compiled(bench: Bench) -> tuple[float, int]:
    """How much faster, and how often a short last micro-batch makes torch compile again."""
    from torch._dynamo.utils import counters

    load = load_of(bench, microbatch=128, precision="bfloat16", channels_last=True)
    with (
        closing(Ours(load)) as eager,
        closing(Ours(replace(load, options=(("compile", "default"),)))) as ours,
    ):
        acts: tuple[Callable[[], None], Callable[[], None]] = (
            turn(eager.step, _TURN),
            turn(ours.step, _TURN),
        )
        for act in acts * 2:
            act()
        pairs = bench.pairs_ms(acts, 8)
        before = counters["stats"]["unique_graphs"]
        ours.shorten(57)
        ours.step()
        ours.shorten(33)
        ours.step()
        return ratio(pairs), counters["stats"]["unique_graphs"] - before
