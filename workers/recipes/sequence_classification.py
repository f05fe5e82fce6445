"""A class for each text.

text -> tokenizer -> tokens, mask (batch, length) -> the model -> logits (batch, classes)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.preflight import data_path
from bundlerun.splits.sources.build import build_model
from bundlerun.workers.data.texts.labelled import (
    LabelledTexts,
    Padded,
    Row,
    TextFiles,
    classes_of,
    find_texts,
    names_of,
    read_rows,
)
from bundlerun.workers.data.texts.tokenizer import Tokenizer, find_tokenizer
from bundlerun.workers.optimizer import make_optimizer
from bundlerun.workers.recipe import DataInfo, DataSets
from bundlerun.workers.recipes.of_text import (
    TOKENS,
    check_embedding,
    check_length,
    check_text_model,
    tokenizer_name,
)
from bundlerun.workers.recipes.outputs import logits_of

_HF_CLASS = "AutoModelForSequenceClassification"
_MASK = "attention_mask"


def recipe(config: TrainConfig) -> SequenceClassification:
    """The recipe for this configuration."""
    return SequenceClassification(config)


class SequenceClassification:
    """Texts, a class for each; cross entropy and accuracy."""

    unit = "texts"
    metric_names = ("top1",)
    shares = ("top1",)

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._path = data_path(config.data)
        self._made: Tokenizer | None = None
        self._rows: list[Row] | None = None

    def check(self) -> None:
        """Raises ConfigError for a model, data or a tokenizer that is not there."""
        config = self._config
        check_text_model(config.model)
        self._files()
        name = tokenizer_name(config.tokenizer, config.model)
        if not name:
            raise ConfigError(
                "--recipe sequence-classification needs a --tokenizer: a file of the package "
                "tokenizers, or a folder of save_pretrained"
            )
        find_tokenizer(name)
        check_length(config.model, config.seq_len)

    def num_outputs(self) -> int:
        """Classes of the training texts, or more as --num-classes says."""
        return self._config.num_classes or len(self._classes())

    def open_data(self) -> DataSets:
        """Reads all texts and labels; tokens are made of a text when it is needed."""
        config, tokenizer = self._config, self._tokenizer()
        val = self._files().val
        classes = self._classes()
        if 0 < config.num_classes < len(classes):
            raise ConfigError(
                f"--num-classes {config.num_classes} is less than the {len(classes)} labels of "
                f"DATA {str(self._path)!r}; leave it out, or give {len(classes)} or more"
            )
        encode = partial(tokenizer.encode, special=True, most=config.seq_len)
        # Across a cut all micro-batches have one shape.
        length = config.seq_len if config.num_chunks > 1 else 0
        return DataSets(
            train=LabelledTexts(self._train_rows(), classes, encode),
            val=LabelledTexts(read_rows(val), classes, encode) if val else None,
            num_outputs=config.num_classes or len(classes),
            collate=Padded(tokenizer.padding or 0, length),
            about={"classes": self._names() or classes, "longest": config.seq_len},
        )

    def model(self, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
        """The model that --model names, or its stages where a user's file has cut it.

        Raises:
            ConfigError: it has no embedding for each token, or takes no mask after the tokens.
        """
        name = self._config.model
        made = build_model(name, info.num_outputs, hf_class=_HF_CLASS, hf_takes=TOKENS)
        whole = made if isinstance(made, nn.Module) else nn.ModuleList(made)
        tokenizer = self._tokenizer()
        check_embedding(whole, tokenizer.size, name, "use another --tokenizer")
        settings: Any = getattr(whole, "config", None)
        if settings is not None:
            takes = list(inspect.signature(whole.forward).parameters)
            if takes[1:2] != [_MASK]:
                raise ConfigError(
                    f"the model of --model {name!r} takes {', '.join(takes[:3])}, and is given "
                    "tokens and their mask; give a build whose model takes these two"
                )
            settings.use_cache = False
            # By which models that look back only find the last token of a text.
            if getattr(settings, "pad_token_id", None) is None:
                settings.pad_token_id = tokenizer.padding or 0
        return made

    def loss(self, output: object, target: Tensor) -> Tensor:
        """Mean cross entropy over the texts."""
        logits = logits_of(output, "batch, classes")
        return cross_entropy(logits, target, label_smoothing=self._config.label_smoothing)

    def metrics(self, output: object, target: Tensor) -> dict[str, Tensor]:
        """How many texts are right."""
        return {"top1": (logits_of(output, "batch, classes").argmax(dim=1) == target).sum()}

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer that --optimizer names."""
        return make_optimizer(self._config, parameters)

    def _classes(self) -> list[str]:
        """As labels have them, in order of their numbers."""
        return classes_of(self._train_rows(), self._names())

    def _names(self) -> list[str]:
        return names_of(self._files().train)

    def _files(self) -> TextFiles:
        return find_texts(self._path, needs_val=self._config.validate)

    def _train_rows(self) -> list[Row]:
        if self._rows is None:
            self._rows = read_rows(self._files().train)
        return self._rows

    def _tokenizer(self) -> Tokenizer:
        if self._made is None:
            self._made = Tokenizer(tokenizer_name(self._config.tokenizer, self._config.model))
        return self._made
