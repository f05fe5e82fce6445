"""Photographs from files to the GPU: the loader alone, and training from it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.forked import Fork, in_fork
from benchmarks.gpu.jobs import SMALL_MODEL, Job
from benchmarks.workload.pictures import picture
from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.collate import Collate
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.order import step_microbatches
from bundlerun.workers.recipe import load_recipe

_WIDTH, _HEIGHT = 500, 375
_LEAST_PER_S = 2500
_LIMIT_S = 60.0


def run(bench: Bench) -> None:
    """Makes the files, loads them, trains on them."""
    root = bench.disk / "images"
    num_files = _write(bench, root)
    num_processes = bench.sized(max(1, (os.cpu_count() or 1) - 1), 0)
    speed = in_fork(partial(_loader_per_s, bench, root, num_files, num_processes))
    what = f"loader alone, {num_processes} processes"
    bench.on_gpu.at_least(what, speed, _LEAST_PER_S, "images/s")
    if bench.is_gpu:
        bench.on_gpu.figure(
            "nvJPEG alone", in_fork(partial(_nvjpeg_per_s, bench, root)), "images/s"
        )
    else:
        bench.on_gpu.cannot("nvJPEG alone", "")
    _train(bench, root)


def _write(bench: Bench, root: Path) -> int:
    """Several processes write photographs; each is there under several names."""
    num_new, num_names = bench.sized((384, 14), (8, 1))
    num_writers = bench.sized(16, 2)
    for part in ("train", "val"):
        (root / part / "one").mkdir(parents=True)
    writers = [
        Fork(partial(_write_some, root / "train" / "one", range(first, num_new, num_writers)))
        for first in range(num_writers)
    ]
    for writer in writers:
        writer.answer()
    for path in sorted((root / "train" / "one").iterdir()):
        # The same bytes: decoding them again takes as long.
        for copy in range(1, num_names):
            os.link(path, path.with_name(f"{copy}-{path.name}"))
    picture(_WIDTH, _HEIGHT, seed=0).save(root / "val" / "one" / "0.jpg", quality=90)
    return num_new * num_names


def _write_some(folder: Path, numbers: range) -> None:
    for number in numbers:
        picture(_WIDTH, _HEIGHT, seed=number).save(folder / f"{number}.jpg", quality=90)


def _loader_per_s(bench: Bench, root: Path, num_files: int, num_processes: int) -> float:
    """Images per second, in micro-batches of 128, once all processes are at it."""
    size = bench.sized(128, 4)
    config = TrainConfig(data=str(root), validate=False, run_dir=str(bench.disk / "loader"))
    data = load_recipe(config).open_data()
    loader = MicrobatchLoader(
        data.train,
        config=config,
        collate=Collate.of(data, data.train),
        num_workers=num_processes,
        pin_memory=bench.is_gpu,
    )
    microbatches = step_microbatches(
        range(num_files), 0, batch_size=num_files, microbatch_size=size
    )
    with closing(loader):
        _use(loader.batches(microbatches, epoch=0))
        start = time.perf_counter()
        _use(loader.batches(microbatches, epoch=1))
        return num_files / (time.perf_counter() - start)


def _use(batches: Iterator[object]) -> None:
    for _ in batches:
        pass


def _nvjpeg_per_s(bench: Bench, root: Path) -> float:
    """Decoding on the GPU, which this project does not do."""
    from torchvision.io import decode_jpeg, read_file

    paths = sorted((root / "train" / "one").iterdir())[:256]
    files = [read_file(str(path)) for path in paths]
    decode_jpeg(files[:16], device=bench.device)
    torch.cuda.synchronize(bench.device)
    start = time.perf_counter()
    decode_jpeg(files, device=bench.device)
    torch.cuda.synchronize(bench.device)
    return len(files) / (time.perf_counter() - start)


def _train(bench: Bench, root: Path) -> None:
    """A run on the files; its speed behind the first steps."""
    model = bench.sized(
        ("--model=resnet50", "--batch-size=256", "--microbatch-size=128", "--precision=bfloat16"),
        (f"--model={SMALL_MODEL}", "--batch-size=4", "--microbatch-size=2", "--image-size=16"),
    )
    words = (
        *model,
        "--shape=1",
        "--epochs=4",
        "--no-validate",
        f"--max-steps={bench.sized(20, 3)}",
    )
    job = Job(bench, "fed", words, data=str(root))
    code = job.wait(bench.limit_s(_LIMIT_S))
    steps = job.steps()
    bench.said.holds("training from files", code == 0, f"code {code}", "code 0")
    if len(steps) < 3:
        return
    middle = len(steps) // 2
    seconds = steps[-1]["time"] - steps[middle]["time"]
    batch = bench.sized(256, 4)
    bench.on_gpu.figure(
        "training from files", batch * (len(steps) - 1 - middle) / seconds, "images/s"
    )
