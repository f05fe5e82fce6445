"""A loop of one's own with DistributedDataParallel, of which no finished step is ever lost.

torchrun --standalone --nproc-per-node=2 --max-restarts=3 examples/protected_ddp.py
bundlerun script --nproc-per-node=2 examples/protected_ddp.py

The lines with a # are all that was added to a plain script. Kill a rank while it trains (kill -9):
the job goes on after the last step, with the same numbers as if nothing had happened.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from bundlerun import protect  #

BATCH, SIDE, CLASSES = 16, 16, 10


def build() -> nn.Module:
    """A small net with what a restart has to bring back: running means, dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(16 * 16, CLASSES),
    )


def batch_of(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Images and labels: which ones, is a function of step and rank, so that a restart has them."""
    draw = torch.Generator().manual_seed(1000 * step + rank)
    labels = torch.randint(CLASSES, (BATCH,), generator=draw)
    images = torch.randn(BATCH, 3, SIDE, SIDE, generator=draw)
    return images + labels.view(-1, 1, 1, 1) / CLASSES, labels


def main() -> None:
    """Trains."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--run-dir", default="")
    args = parser.parse_args()
    is_alone = "RANK" not in os.environ
    if not is_alone:
        dist.init_process_group("gloo")
    rank = 0 if is_alone else dist.get_rank()
    torch.manual_seed(0)
    model = build()
    torch.manual_seed(rank)  # dropout differs between ranks
    trained = model if is_alone else DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    with protect(model, optimizer, schedule, run_dir=args.run_dir) as run:  #
        for step in run.steps(args.steps):  # was: for step in range(args.steps)
            images, labels = batch_of(step, rank)
            loss = cross_entropy(trained(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            if rank == 0:
                print(f"step {step} loss {loss.item():.17g}", flush=True)
    if not is_alone:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
