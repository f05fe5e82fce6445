"""A program with both doors of the library, `protect` and `Bundle`, for each launcher to start."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from bundlerun import Bundle, protect


def main(argv: list[str] | None = None) -> None:
    """Two protected steps, then two of a bundle; what each rank was is in a file of its own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--local_rank", "--local-rank")
    args = parser.parse_args(argv)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    inputs, targets = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with protect(model, optimizer, run_dir=args.run_dir) as run:
        for _ in run.steps(2):
            optimizer.zero_grad()
            cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    with Bundle.of(model, cross_entropy, inputs[:2], batch_size=4) as bundle:
        losses = [bundle.step(inputs, targets) for _ in range(2)]
        names = " ".join(name for name, _ in bundle.named_parameters())
        # Ranks that were alone would each have all of the model, and one file would be left.
        (args.run_dir / f"rank-{names}").write_text(f"{run.step} {losses[0] == losses[1]}")


if __name__ == "__main__":
    main()
