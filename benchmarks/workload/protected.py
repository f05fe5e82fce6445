"""A script with a loop of its own: DDP, and `protect` around it; what `protect` measures starts it.

turns     protected and plain steps in turn, in one loop; rank 0 writes the seconds of each
train     protected steps until it is ended; each rank writes its process, rank 0 each step, and
          when it was how far on the way to its first
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import resnet18

from benchmarks.workload.small_cnn import build
from bundlerun import Protection, protect
from bundlerun.workers.rank.life.liveness import process_age_s

_MANY = 1_000_000
_WARM_STEPS = 6
_NUM_COUNTED = 12
_COPIED_S = 0.5
"""Longer than a copy takes."""


def main() -> None:
    """Joins the others, and does what it is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("turns", "train"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--side", type=int, default=128, help="of an image, pixels")
    parser.add_argument("--samples", type=int, default=32, help="of a rank")
    args = parser.parse_args()
    now = time.monotonic
    at = {"process": now() - process_age_s(), "imports": now()}
    dist.init_process_group("gloo")
    at["group"] = now()
    rank = dist.get_rank()
    torch.manual_seed(0)
    model = resnet18(num_classes=10) if args.what == "turns" else build(10)
    side = args.side if args.what == "turns" else 16
    trained = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    at["DDP"] = now()
    step = _step(trained, optimizer, args.samples, side)
    kept = Protection(snapshot_steps=1)
    with protect(model, optimizer, run_dir=args.folder / "run", protection=kept) as run:
        at["protect"] = now()
        if args.what == "turns":
            steps = run.steps(_MANY)
            found = _turns(steps, step, args.turns, args.steps)
            found["counted"] = _counted(steps, step)
            if rank == 0:
                (args.folder / "turns.json").write_text(json.dumps(found))
            return
        (args.folder / f"rank{rank}").write_text(str(os.getpid()))
        with (args.folder / "steps").open("a", buffering=1) as log:
            for number in run.steps(_MANY):
                step()
                if rank == 0:
                    if "step" not in at:
                        at["step"] = now()
                        # Before the step's line, for which is waited.
                        (args.folder / f"start{os.getpid()}").write_text(json.dumps(at))
                    log.write(f"{number} {now()} {os.getpid()}\n")


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, samples: int, side: int
) -> Callable[[], None]:
    images, labels = torch.randn(samples, 3, side, side), torch.arange(samples) % 10

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def _turns(
    steps: Iterator[int], step: Callable[[], None], num_turns: int, num_steps: int
) -> dict[str, list[list[float]]]:
    """Seconds of a step in each turn, of the processor and of the clock: protected, plain."""
    found: dict[str, list[list[float]]] = {"protected": [], "plain": []}
    next(steps, None)
    for _ in range(_WARM_STEPS):
        step()
        next(steps, None)
    for turn in range(2 * num_turns):
        # with, without, without, with: a steady drift of the machine falls on both alike.
        is_protected = turn % 4 in (0, 3)
        # Not timed: a copy that begins here is in the first step that is, one that began before is
        # over.
        step()
        if is_protected:
            next(steps, None)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(num_steps):
            step()
            if is_protected:
                next(steps, None)
        took = [time.process_time() - cpu, time.perf_counter() - wall]
        found["protected" if is_protected else "plain"].append([t / num_steps for t in took])
    return found


def _counted(steps: Iterator[int], step: Callable[[], None]) -> list[list[float]]:
    """Processor seconds of what is done for a step beside it, and of the step, alone each."""
    found = []
    for _ in range(_NUM_COUNTED):
        begin = time.process_time()
        step()
        end = time.process_time()
        next(steps, None)
        time.sleep(_COPIED_S)  # the copy's thread has no other to share the processor with
        found.append([time.process_time() - end, end - begin])
    return found


if __name__ == "__main__":
    main()
