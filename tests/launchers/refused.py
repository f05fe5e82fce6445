"""A program for each door of the library, which its ranks enter in a way that cannot go well."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bundlerun import Bundle, protect

LIMIT_S = 60.0


def build(num_outputs: int = 3) -> nn.Module:
    """A model that is another one on each rank."""
    width = 8 + int(os.environ.get("RANK", "0"))
    return nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.Linear(width, num_outputs))


def main() -> None:
    """Goes through a door; inside `protect` it waits for a file, where one is named."""
    parser = argparse.ArgumentParser()
    parser.add_argument("door", choices=("protect", "bundle"))
    parser.add_argument("--run-dir", type=Path)
    parser.add_argument("--until", type=Path)
    args = parser.parse_args()
    model = build()
    if args.door == "bundle":
        Bundle.of(model, cross_entropy, torch.ones(2, 192), batch_size=4)
        return
    with protect(model, run_dir=args.run_dir) as run:
        for _ in run.steps(1):
            deadline = time.monotonic() + LIMIT_S
            while args.until and not args.until.exists() and time.monotonic() < deadline:
                time.sleep(0.01)


if __name__ == "__main__":
    main()
