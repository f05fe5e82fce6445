"""A loop of one's own over a model that is cut into stages, which train as a pipeline.

bundlerun script --nproc-per-node=2 examples/pipelined_loop.py
torchrun --standalone --nproc-per-node=2 examples/pipelined_loop.py

The first process has the front of the model, the second its rear; with four, there are two such
bundles, whose gradients are summed. By itself (python examples/pipelined_loop.py) one process has
the whole model, and prints the same losses as two.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bundlerun import Bundle

BATCH, WORDS, LENGTH, WIDTH = 32, 50, 12, 32


class Model(nn.Module):
    """A small transformer that says how often a text repeats its first word."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True)
            for _ in range(4)
        )
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, texts: Tensor) -> Tensor:
        """Logits (batch, 4) of texts (batch, length)."""
        x = self.words(texts)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(x.mean(1))
        return logits


def batch_of(step: int, bundle: int) -> tuple[Tensor, Tensor]:
    """Texts, and how often the first word is in each, as far as 3."""
    draw = torch.Generator().manual_seed(1000 * step + bundle)
    texts = torch.randint(WORDS // 10, (BATCH, LENGTH), generator=draw)
    return texts, (texts[:, 1:] == texts[:, :1]).sum(1).clamp(max=3)


def right(output: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """How many are."""
    return {"right": (output.argmax(1) == targets).sum()}


def main() -> None:
    """Trains, evaluates, saves."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--folder", default="runs/pipelined")
    args = parser.parse_args()
    torch.manual_seed(0)
    example = batch_of(0, 0)[0][:2]
    with Bundle.of(Model(), cross_entropy, example, batch_size=BATCH, metrics=right) as bundle:
        optimizer = torch.optim.AdamW(bundle.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
        for step in range(args.steps):
            loss = bundle.step(*batch_of(step, bundle.number))
            bundle.clip_grad_norm_(1.0)
            optimizer.step()
            schedule.step()
            if bundle.is_reporter:
                print(f"step {step} loss {loss:.6f} right {bundle.metrics['right']:.2f}")
        loss = bundle.evaluate(*batch_of(args.steps, bundle.number))
        path = bundle.save(args.folder, optimizer)
        if bundle.is_reporter:
            print(f"evaluation loss {loss:.6f}, saved in {path}")


if __name__ == "__main__":
    main()
