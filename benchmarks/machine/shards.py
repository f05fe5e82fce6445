"""Photographs from .tar and .parquet shards on one core, against those in class folders."""

from __future__ import annotations

import importlib.util
import io
import os
import tarfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch

from benchmarks.machine.loader import NUM_IMAGES, Pass, measure, ours, write_images
from benchmarks.results.record import Check, Options, print_table
from bundlerun.workers.data.shards.tar_index import open_indexes

CLAIM = "images load from shards as quickly as from class folders"
NUM_ROUNDS = 30
NUM_LISTED = 20_000
GROUP_ROWS = 100
FOLDER, TAR, PARQUET = "class folders", ".tar", ".parquet"
TARGET = 0.97


def run(options: Options) -> None:
    """Measures all kinds in turn, round by round; then how long it takes to find the samples."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory()))
        seconds = measure(ways(root, stack), options.rounds_or(NUM_ROUNDS))
        scan_us, kept_us = listing(root)
    speeds = {name: NUM_IMAGES / median(found) for name, found in seconds.items()}
    ratios = {
        # Of rounds that ran next to each other: what slows the machine cancels out.
        name: median(a / b for a, b in zip(seconds[FOLDER], found, strict=True))
        for name, found in seconds.items()
    }
    print_table(
        ("kind", "images/s", "over class folders"),
        [(name, speeds[name], ratios[name]) for name in seconds],
    )
    print(f"a sample of a .tar is found in {scan_us:.1f} us, in a kept index in {kept_us:.2f} us")
    result = {
        "images_per_s": speeds,
        "over_folders": ratios,
        "scan_us_per_sample": scan_us,
        "kept_us_per_sample": kept_us,
    }
    checks = [
        Check(f"{name} over class folders, at least", ratios[name], TARGET)
        for name in ratios
        if name != FOLDER
    ]
    options.record("shards", result, checks)


def ways(root: Path, stack: ExitStack) -> dict[str, Pass]:
    """By kind; `stack` closes what they keep open."""
    write_images(root / "folder")
    files = sorted((root / "folder" / "train" / "one").iterdir())
    images = [file.read_bytes() for file in files]
    write_tar(root / "tar" / "train" / "0.tar", iter(images))
    found = {
        FOLDER: ours(root / "folder", "fast", stack),
        TAR: ours(root / "tar", "fast", stack),
    }
    if importlib.util.find_spec("pyarrow") is not None:
        write_parquet(root / "parquet" / "train" / "0.parquet", images)
        found[PARQUET] = ours(root / "parquet", "fast", stack)
    return found


def listing(root: Path) -> tuple[float, float]:
    """Microseconds that a sample of a .tar takes to be found in it, and in a kept index."""
    path = root / "listed.tar"
    write_tar(path, (b"x" * 2000 for _ in range(NUM_LISTED)))
    # Old enough for its index to be kept.
    long_ago = time.time() - 3600
    os.utime(path, (long_ago, long_ago))
    found = []
    for _ in range(2):
        start = time.thread_time()
        open_indexes([path], root / "kept")
        found.append((time.thread_time() - start) / NUM_LISTED * 1e6)
    return found[0], found[1]


def write_tar(path: Path, images: Iterator[bytes]) -> None:
    """Images of one class, in a shard."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images):
            for name, data in ((f"{number:06d}.jpg", image), (f"{number:06d}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_parquet(path: Path, images: list[bytes]) -> None:
    """The same in a parquet file."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"image": rows, "label": [0] * len(images)})
    parquet.write_table(table, path, row_group_size=GROUP_ROWS)
