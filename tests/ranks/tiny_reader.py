"""A small model that classifies texts by tokens and their mask, for sequence-classification."""

from __future__ import annotations

from torch import Tensor, nn

WIDTH = 12


class Reader(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, WIDTH)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.second(self.first(self.embedding(tokens)).tanh()).tanh()
        counts = mask.unsqueeze(2).to(x.dtype)
        return self.head((x * counts).sum(1) / counts.sum(1))  # type: ignore[no-any-return]


def build(num_classes: int) -> nn.Module:
    """The model."""
    return Reader(num_classes)
