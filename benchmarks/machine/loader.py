"""Photographs read, cut, resized and stacked on one core: ours against torchvision's pipeline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.results.record import Check, Options, print_table
from benchmarks.workload.pictures import picture
from bundlerun.launcher.choices import Decode
from bundlerun.launcher.config import TrainConfig
from bundlerun.workers.data.loader import MicrobatchLoader
from bundlerun.workers.data.order import step_microbatches
from bundlerun.workers.recipe import load_recipe, model_inputs

CLAIM = "one core loads JPEG files at least twice as fast as torchvision's reference pipeline"
WIDTH, HEIGHT = 500, 375
QUALITY = 90
NUM_IMAGES = 64
MICROBATCH = 32
SIZE = 224
NUM_ROUNDS = 30
TARGET = 2.0
REFERENCE, OURS = "torchvision, to float32", "fast, uint8"

Pass = Callable[[], Tensor]
"""Loads all images once; gives the last micro-batch."""


def run(options: Options) -> None:
    """Measures all ways in turn, round by round."""
    torch.set_num_threads(1)
    with ExitStack() as stack:
        root = Path(stack.enter_context(TemporaryDirectory()))
        kilobytes = write_images(root) / NUM_IMAGES / 1000
        seconds = measure(ways(root, stack), options.rounds_or(NUM_ROUNDS))
    speeds = {name: NUM_IMAGES / median(found) for name, found in seconds.items()}
    ratios = {
        # Of rounds that ran next to each other: what slows the machine cancels out.
        name: median(a / b for a, b in zip(seconds[REFERENCE], found, strict=True))
        for name, found in seconds.items()
    }
    print_table(
        ("way", "images/s", "over torchvision's"),
        [(name, speeds[name], ratios[name]) for name in seconds],
    )
    result = {
        "kilobytes_per_image": kilobytes,
        "simplejpeg": simplejpeg_version(),
        "images_per_s": speeds,
        "over_torchvision": ratios,
    }
    checks = [Check("fast over torchvision's, at least", ratios[OURS], TARGET)]
    options.record("loader", result, checks)


def simplejpeg_version() -> str:
    """Of what decodes; empty where Pillow does."""
    try:
        return version("simplejpeg")
    except PackageNotFoundError:
        return ""


def write_images(root: Path) -> int:
    """Writes the images below `root` and returns their bytes."""
    folder = root / "train" / "one"
    folder.mkdir(parents=True)
    for number in range(NUM_IMAGES):
        image = picture(WIDTH, HEIGHT, seed=number)
        image.save(folder / f"{number:04d}.jpg", quality=QUALITY)
    return sum(path.stat().st_size for path in folder.iterdir())


def measure(passes: Mapping[str, Pass], num_rounds: int) -> dict[str, list[float]]:
    """Processor seconds that each way took in each round; which one comes first changes.

    Of the processor, as all run in one thread and wait for nothing: so other work on the machine
    counts for less.
    """
    seconds: dict[str, list[float]] = {name: [] for name in passes}
    for load in passes.values():
        load()  # brings the files into memory
    for number in range(num_rounds):
        for name in list(passes)[:: 1 if number % 2 else -1]:
            start = time.thread_time()
            passes[name]()
            seconds[name].append(time.thread_time() - start)
    return seconds


def ways(root: Path, stack: ExitStack) -> dict[str, Pass]:
    """By name; `stack` closes what they keep open."""
    return {
        REFERENCE: torchvisions(root),
        "exact, uint8": ours(root, "exact", stack),
        OURS: ours(root, "fast", stack),
        "fast, normalised by the same core": ours(root, "fast", stack, is_normalised=True),
    }


def torchvisions(root: Path) -> Pass:
    """The training pipeline of torchvision's reference scripts, in the process that trains."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(SIZE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            v2.ToPureTensor(),
        ]
    )
    images = ImageFolder(str(root / "train"), transform)
    loader = DataLoader(images, batch_size=MICROBATCH, num_workers=0)
    return lambda: _last(batch[0] for batch in loader)


def ours(root: Path, decode: Decode, stack: ExitStack, *, is_normalised: bool = False) -> Pass:
    """The default recipe's samples by our loader, in the process that trains."""
    config = TrainConfig(data=str(root), image_size=SIZE, validate=False, decode=decode)
    recipe = load_recipe(config)
    data = recipe.open_data()
    loader = stack.enter_context(
        closing(MicrobatchLoader(data.train, config=config, num_workers=0))
    )
    order = range(NUM_IMAGES)
    microbatches = step_microbatches(order, 0, batch_size=NUM_IMAGES, microbatch_size=MICROBATCH)

    def load() -> Tensor:
        batches = (batch.inputs for batch in loader.batches(microbatches, epoch=0))
        if is_normalised:
            return _last(model_inputs(recipe, inputs)[0] for inputs in batches)
        return _last(inputs[0] for inputs in batches)

    return load


def _last(batches: Iterator[Tensor]) -> Tensor:
    for batch in batches:
        last = batch
    return last
