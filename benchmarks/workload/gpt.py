"""A language model in the pieces of a GPT, as wide as one likes."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


class _Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self._heads = (3, num_heads, width // num_heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attend(self.norm1(x)).unflatten(2, self._heads).permute(2, 0, 3, 1, 4)
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).flatten(2))
        made: Tensor = x + self.narrow(gelu(self.wide(self.norm2(x))))
        return made


class Gpt(nn.Module):
    """From tokens (batch, length) to scores (batch, length, vocabulary).

    Args:
        num_blocks: of attention and a perceptron each.
        width: of what is between them.
        num_heads: of the attention.
        vocabulary: tokens that there are.
    """

    def __init__(
        self, num_blocks: int = 12, width: int = 768, num_heads: int = 12, vocabulary: int = 1024
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(_Block(width, num_heads) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """The scores of the next token."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        made: Tensor = self.head(self.norm(x))
        return made
