"""Texts or files of tokens in sequences of equal length; the next token from those before.

    text -> tokenizer -> tokens, one file after the other -> sequences of --seq-len
    tokens (batch, length) -> the model -> logits (batch, length, vocabulary)

The loss is a mean over tokens: it says its sum and their number.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from bundlerun.launcher.agreement.continuation import has_begun
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.preflight import data_path
from bundlerun.launcher.run_folder.paths import run_paths
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.data.texts.corpus import TRAIN_PART, Corpus, find_corpus, read_documents
from bundlerun.workers.data.texts.tokenizer import Tokenizer, find_tokenizer
from bundlerun.workers.data.texts.tokens import Sequences, Tokens, largest, read_tokens
from bundlerun.workers.optimizer import make_optimizer
from bundlerun.workers.recipe import DataInfo, DataSets
from bundlerun.workers.recipes.of_text import (
    TOKENS,
    check_embedding,
    check_length,
    check_text_model,
    hf_settings,
    tokenizer_name,
)
from bundlerun.workers.recipes.outputs import logits_of

IGNORED = -100
"""A target that is not learnt, as torch and transformers have it."""
_CAUSAL = "AutoModelForCausalLM"
_MOST_EXPONENT = 700.0
"""Of e, in a float."""


def recipe(config: TrainConfig) -> LanguageModel:
    """The recipe for this configuration."""
    return LanguageModel(config)


class LanguageModel:
    """Sequences of tokens, the token after each as its target; cross entropy and perplexity."""

    unit = "sequences"
    metric_names = ()
    best = ("loss", "min")

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._path = data_path(config.data)
        self._made: Tokenizer | None = None

    def check(self) -> None:
        """Raises ConfigError for a model, data or a tokenizer that is not there."""
        check_text_model(self._config.model)
        corpus = self._corpus()
        if self._tokenizer_name:
            find_tokenizer(self._tokenizer_name)
        elif corpus.is_text:
            raise ConfigError(
                f"DATA {str(self._path)!r} is text, and needs a --tokenizer: a file of the package "
                "tokenizers, or a folder of save_pretrained; or give tokens in a file that ends "
                "with .bin, .npy or .pt"
            )
        check_length(self._config.model, self._config.seq_len)

    def num_outputs(self) -> int:
        """Of the model, without opening the data; 0: only the data can say."""
        found = self._config.num_classes or int(
            hf_settings(self._config.model).get("vocab_size") or 0
        )
        return found or (self._tokenizer().size if self._tokenizer_name else 0)

    def open_data(self) -> DataSets:
        """Maps the files of tokens, or makes tokens of texts where no earlier start has."""
        config, corpus, length = self._config, self._corpus(), self._config.seq_len
        train, val = self._parts(corpus)
        sequences = Sequences(train, length)
        of_val = Sequences(val, length) if config.validate else None
        for name, found, parts in (("training", sequences, train), ("validation", of_val, val)):
            if found is not None and not len(found):
                self._refuse_short(name, max(map(len, parts), default=0))
        vocabulary = self.num_outputs()
        parts = [*train, *(val if of_val is not None else ())]
        if not vocabulary:
            vocabulary = 1 + largest(parts, 0)
        elif not has_begun(run_paths(config.run_dir)):
            # A run that goes on has done so: its tokens are compared by a digest.
            largest(parts, vocabulary)
        return DataSets(
            train=sequences,
            val=of_val,
            num_outputs=vocabulary,
            about={"vocabulary": vocabulary, "sequence_length": length},
            remarks=[
                f"{sum(map(len, train)):,} tokens for training, a vocabulary of {vocabulary:,}"
            ],
        )

    def model(self, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
        """The model that --model names, or its stages where a user's file has cut it.

        Raises:
            ConfigError: it has no embedding for so many tokens.
        """
        name = self._config.model
        made = build_model(name, info.num_outputs, hf_class=_CAUSAL, hf_takes=TOKENS)
        whole = made if isinstance(made, nn.Module) else nn.ModuleList(made)
        way = "say with --num-classes how many there are"
        check_embedding(whole, info.num_outputs, self._config.model, way)
        # What a model keeps to go on with a text is of no use in training, and large.
        settings: Any = getattr(whole, "config", None)
        if getattr(settings, "use_cache", False):
            settings.use_cache = False
        return made

    def loss(self, output: object, target: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of the cross entropies of all tokens but those of target -100, and their number.

        Args:
            output: has logits (batch, length, vocabulary).
            target: (batch, length).
        """
        logits = logits_of(output, "batch, tokens, vocabulary")
        total = cross_entropy(
            logits.flatten(0, 1),
            target.flatten(),
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=self._config.label_smoothing,
        )
        return total, (target != IGNORED).sum()

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """None of the samples; see `final_metrics`."""
        return {}

    def final_metrics(self, loss: float, means: Mapping[str, float]) -> dict[str, float]:
        """The perplexity, which the loss of all tokens says."""
        return {"perplexity": math.exp(min(loss, _MOST_EXPONENT))}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer that --optimizer names."""
        return make_optimizer(self._config, parameters)

    def _corpus(self) -> Corpus:
        return find_corpus(self._path, needs_val=self._config.validate)

    def _parts(self, corpus: Corpus) -> tuple[list[Tokens], list[Tokens]]:
        """The tokens for training and for validation, a file each."""
        known = self.num_outputs()
        train, val = (
            [self._encoded(files)]
            if corpus.is_text and files
            else [read_tokens(file, known) for file in files]
            for files in (corpus.train, corpus.val)
        )
        if not self._path.is_file():
            return train, val
        at = int(TRAIN_PART * len(train[0]))
        return [train[0][:at]], [train[0][at:]]

    def _encoded(self, files: Sequence[Path]) -> Tokens:
        texts = [text for file in files for text in read_documents(file)]
        paths = run_paths(self._config.run_dir)
        return self._tokenizer().encode_all(texts, paths.tokens if paths else None)

    def _refuse_short(self, part: str, count: int) -> None:
        raise ConfigError(
            f"DATA {str(self._path)!r} has {count} tokens for {part}, less than a sequence of "
            f"--seq-len {self._config.seq_len} and the token after it; give a longer text, or a "
            "smaller --seq-len"
            + ("" if part == "training" else ", or leave validation out with --no-validate")
        )

    @property
    def _tokenizer_name(self) -> str:
        return tokenizer_name(self._config.tokenizer, self._config.model)

    def _tokenizer(self) -> Tokenizer:
        if self._made is None:
            self._made = Tokenizer(self._tokenizer_name)
        return self._made
