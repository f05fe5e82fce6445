"""A character-level transformer that learns a text file: the next character from those before.

    tokens (batch, 64) -> embedding -> block1 -> block2 -> block3 -> block4 -> head
           (batch, 64, 128) from here on                       (batch, 64, vocabulary)

It is one module that can be cut between any two of them: --cut block3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.preflight import data_path
from bundlerun.workers.optimizer import make_optimizer
from bundlerun.workers.recipe import DataInfo, DataSets

CONTEXT = 64
WIDTH = 128
NUM_HEADS = 4
NUM_BLOCKS = 4
TRAIN_PART = 0.9
"""Of the text; the rest, its end, is for validation."""
MIN_CHARACTERS = 1000
"""Enough for one window of the validation part."""


def recipe(config: TrainConfig) -> Characters:
    """The recipe for this configuration."""
    return Characters(config)


class Characters:
    """Windows of a text; cross entropy and accuracy of the next character."""

    unit = "sequences"
    metric_names = ("top1",)
    shares = ("top1",)

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._path = data_path(config.data)

    def check(self) -> None:
        """Raises ConfigError where the text file is missing or too short."""
        try:
            with self._path.open("rb") as file:
                size = len(file.read(MIN_CHARACTERS))
        except OSError as exc:
            raise ConfigError(
                f"cannot read DATA {str(self._path)!r}: {exc.strerror}; give a text file"
            ) from exc
        self._check_length(size)

    def open_data(self) -> DataSets:
        """The text's windows: its first 90 % for training, the rest for validation."""
        text = self._read()
        self._check_length(len(text))
        numbers = {character: i for i, character in enumerate(sorted(set(text)))}
        # Sorted, so that a character has the same number on every node.
        tokens = torch.tensor([numbers[character] for character in text])
        train, val = tokens.tensor_split([int(TRAIN_PART * len(tokens))])
        return DataSets(
            train=Windows(train),
            val=Windows(val) if self._config.validate else None,
            num_outputs=len(numbers),
            about={"characters": "".join(numbers), "context": CONTEXT},
        )

    def model(self, info: DataInfo) -> nn.Module:
        """The transformer, for a vocabulary of `info.num_outputs` characters."""
        model = nn.Sequential()
        model.add_module("embedding", Embedding(info.num_outputs))
        for number in range(1, NUM_BLOCKS + 1):
            model.add_module(f"block{number}", Block())
        head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, info.num_outputs))
        model.add_module("head", head)
        return model

    def loss(self, output: object, target: Tensor) -> Tensor:
        """Mean cross entropy over all positions."""
        logits = _logits(output)
        smoothing = self._config.label_smoothing
        return cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=smoothing)

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """Share of the positions that are right, summed over the windows."""
        right = _logits(output).argmax(dim=2) == target
        return {"top1": right.double().mean(dim=1).sum()}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer that --optimizer names."""
        return make_optimizer(self._config, parameters)

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except UnicodeDecodeError as exc:
            raise ConfigError(
                f"DATA {str(self._path)!r} is no UTF-8 text (byte {exc.start}); give a text file"
            ) from exc
        except OSError as exc:
            raise ConfigError(f"cannot read DATA {str(self._path)!r}: {exc.strerror}") from exc

    def _check_length(self, length: int) -> None:
        if length < MIN_CHARACTERS:
            raise ConfigError(
                f"DATA {str(self._path)!r} has {length} characters; "
                f"give a text of {MIN_CHARACTERS} or more"
            )


class Windows:
    """Consecutive pieces of a text: (characters, the character after each), both (CONTEXT,)."""

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        # The last character is only ever a target.
        return (len(self._tokens) - 1) // CONTEXT

    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor]:
        """One window, int64."""
        window = self._tokens[index * CONTEXT : (index + 1) * CONTEXT + 1]
        return window[:-1], window[1:]


class Embedding(nn.Module):
    """Characters (batch, CONTEXT) to vectors (batch, CONTEXT, WIDTH) that know their position."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.token = nn.Embedding(num_characters, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        """The sum of the two embeddings."""
        embedded: Tensor = self.token(tokens) + self.position.weight
        return embedded


class Block(nn.Module):
    """One layer of a transformer that looks back only, normalised first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Same shape in and out, (batch, CONTEXT, WIDTH)."""
        parts = self.query_key_value(self.norm(x)).unflatten(2, (3, NUM_HEADS, WIDTH // NUM_HEADS))
        by_head = parts.permute(2, 0, 3, 1, 4)
        looked = scaled_dot_product_attention(by_head[0], by_head[1], by_head[2], is_causal=True)
        x = x + self.project(looked.transpose(1, 2).flatten(2))
        result: Tensor = x + self.feed(x)
        return result


def _logits(output: object) -> Tensor:
    assert isinstance(output, Tensor)
    return output
