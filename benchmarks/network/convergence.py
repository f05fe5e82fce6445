"""Loss curves with gradients in short forms between nodes, against float32, over seeds."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean, variance
from typing import Any, Final

from benchmarks.cluster.forked import Seat, run_ranks
from benchmarks.cluster.hosts import Wire, open_hosts, why_not
from benchmarks.results.draw import draw_lines
from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload import small_cnn
from benchmarks.workload.training import losses_by_epoch
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.layout.shape import Shape
from examples.write_digits import write_digits

CLAIM = "an exchange in a shorter form changes the loss by less than another seed does"
PER_HOST = (4, 4)
FORMS: Final[dict[str, dict[str, Any]]] = {
    **{dtype: {"exchange_dtype": dtype} for dtype in ("float32", "bfloat16", "int8", "int4")},
    **{exchange: {"exchange": exchange} for exchange in ("topk:16", "powersgd:4", "powersgd:16")},
}
NUM_SEEDS = 5
TARGET = 1.0
CONFIG = TrainConfig(
    model=f"{small_cnn.__file__}:build",
    cut=("third",),
    shape=Shape((1, 1)),
    batch_size=64,
    microbatch_size=8,
    image_size=16,
    augment="none",
    epochs=6,
    lr=0.02,
    lr_schedule="constant",
    sync="local-master",
    share="equal",
    validate=False,
    loader_workers=0,
)

skip_reason = why_not
Curves = dict[str, list[list[float]]]


def run(options: Options) -> None:
    """Trains with every seed in all forms."""
    num_seeds = max(2, options.rounds_or(NUM_SEEDS))
    with tempfile.TemporaryDirectory(prefix="bundlerun-") as folder:
        write_digits(Path(folder) / "digits")
        config = replace(CONFIG, data=f"{folder}/digits", run_dir=f"{folder}/run")
        with open_hosts(len(PER_HOST), Wire(mbit_per_s=1000)) as hosts:
            answers = run_ranks(hosts, PER_HOST, partial(_rank, config, num_seeds))
    curves: Curves = answers[1]  # a last stage, which has the loss
    plain, *others = FORMS
    rows: list[tuple[object, ...]] = []
    checks = []
    for form in others:
        # Equal to the last bit: the option had no effect, and the comparison would prove nothing.
        if curves[plain] == curves[form]:
            raise RuntimeError(f"{plain} and {form} are the same: nothing was rounded")
        worst = 0.0
        for epoch in range(config.epochs):
            exact, rounded = ([curve[epoch] for curve in curves[each]] for each in (plain, form))
            # Of pairs with the same seed: what seeds differ by is in `noise` only.
            difference = fmean(b - a for a, b in zip(exact, rounded, strict=True))
            noise = math.sqrt((variance(exact) + variance(rounded)) / 2)
            worst = max(worst, abs(difference) / noise)
            name = f"{form}, epoch {epoch}"
            rows.append((name, fmean(exact), fmean(rounded), difference, noise))
        what = f"{form}: mean difference over the deviation of seeds, at most"
        checks.append(Check(what, worst, TARGET))
    head = ("mean loss", plain, "short form", "mean difference", "deviation over seeds")
    print_table(head, rows)
    options.record("convergence", {"losses": curves}, checks)
    _draw(curves, options)


def _rank(config: TrainConfig, num_seeds: int, seat: Seat) -> Curves:
    return {
        form: [
            losses_by_epoch(seat, replace(config, **changes, seed=seed), f"{form}/{seed}")
            for seed in range(num_seeds)
        ]
        for form, changes in FORMS.items()
    }


def _draw(curves: Curves, options: Options) -> None:
    num_seeds = len(next(iter(curves.values())))
    by_epoch = {dtype: list(zip(*found, strict=True)) for dtype, found in curves.items()}
    draw_lines(
        "convergence",
        options,
        title=f"Digits, small CNN, 2 nodes of 2 bundles, {num_seeds} seeds (range)",
        labels=("epoch", "mean loss"),
        lines={d: [(e, fmean(v)) for e, v in enumerate(found)] for d, found in by_epoch.items()},
        spread={
            d: [(e, min(v), max(v)) for e, v in enumerate(found)] for d, found in by_epoch.items()
        },
    )
