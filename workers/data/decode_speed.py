"""`python -m bundlerun.workers.data.decode_speed`: how many images one core makes of files.

`bundlerun doctor` starts it. First it prints what torch finds (`launcher.doctor.read.ask_torch`).
Then it reads JSON lists of paths, a line each, and prints for each a JSON object: images, seconds
of the processor, and why not. Each image is decoded, and cut and resized as in training.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bundlerun.launcher.doctor.read.ask_torch import print_answer
from bundlerun.workers.data.image_folder import image_of, readable
from bundlerun.workers.data.views import RandomView
from bundlerun.workers.recipe import UnreadableSample

SECONDS = 1.5
SIDE = 224


def decode_speed(
    paths: Sequence[str],
    *,
    seconds: float = SECONDS,
    view: Callable[[Any], Tensor] | None = None,
    clock: Callable[[], float] = time.thread_time,
) -> dict[str, object]:
    """Decodes images one after the other, each once.

    Args:
        paths: of the images.
        seconds: of `clock` after which no other one is begun.
        view: from an image to what the model sees; by default as in training.
        clock: the processor's time of this thread, so that other work counts for less.
    """
    see = view or RandomView(SIDE)
    # Read before: here only the processor is measured.
    files = [(path, Path(path).read_bytes()) for path in paths]
    number, spent = 0, 0.0
    try:
        if files:
            _decode(*files[0], see)  # libraries do more for the first image
        start = clock()
        for path, data in files:
            _decode(path, data, see)
            number, spent = number + 1, clock() - start
            if spent > seconds:
                break
    except UnreadableSample as exc:
        return {"images": number, "seconds": spent, "why_not": str(exc)}
    return {"images": number, "seconds": spent, "why_not": ""}


def _decode(path: str, data: bytes, view: Callable[[Any], Tensor]) -> None:
    with readable(partial(repr, path)):
        view(image_of(BytesIO(data), is_fast=True))


def main() -> None:
    """Answers line by line."""
    print_answer()
    torch.set_num_threads(1)
    for line in sys.stdin:
        print(json.dumps(decode_speed(json.loads(line))), flush=True)  # noqa: T201 (it is read)


if __name__ == "__main__":
    main()
