"""The one extension point: what is trained, with which data, loss, metrics and optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError, nearest
from bundlerun.launcher.models.name import OF_BOXES, OF_IMAGES, OF_PIXELS, OF_TEXT, OF_TEXTS
from bundlerun.launcher.models.user_file import module_from_file, users_code

BUILT_IN = {
    OF_IMAGES: "bundlerun.workers.recipes.image_classification",
    OF_TEXT: "bundlerun.workers.recipes.language_model",
    OF_PIXELS: "bundlerun.workers.recipes.segmentation",
    OF_BOXES: "bundlerun.workers.recipes.detection",
    OF_TEXTS: "bundlerun.workers.recipes.sequence_classification",
    "characters": "bundlerun.workers.recipes.characters",
}
Sample = Any
"""(input, target), or what the recipe's `DataSets.split` makes these of."""


class UnreadableSample(ConfigError):
    """One sample cannot be read; the message names its file. --skip-unreadable replaces it."""


class SampleSet(Sized, Protocol):
    """A map-style data set: `len()` and samples by index.

    With a method `names_digest() -> str`, nodes compare it before the first step, so that all read
    the same samples in the same order.

    With a method `epoch_order(seed, epoch) -> Sequence[int]`, it says itself in which order an
    epoch uses its samples: each number once, and always the same for these two. So may samples
    that are stored together be used at about the same time.
    """

    def __getitem__(self, index: int, /) -> Sample:
        """One (input, target); a tuple as the input is several inputs.

        Both are tensors, numbers, numpy arrays, or dicts, tuples and lists of these. A sample may
        be a dict, too; then the entry "target" or "label" is the target, the rest the input.

        What is random about it may use the generators of torch, random and numpy: they are
        seeded by (seed, epoch, index) before each call.

        Raises:
            UnreadableSample: its file is damaged.
        """
        ...


class Stream(Protocol):
    """Samples one after the other, such as an IterableDataset; each process reads all of them.

    An epoch is one pass, `iter(stream)`, after `set_epoch(epoch)` where there is such a method. A
    pass must be the same in each process, whatever rank or loading process it is: all that is
    random about it comes from the epoch, or from the generators of torch, random and numpy.
    """

    def __iter__(self) -> Iterator[Sample]:
        """Samples as those of a `SampleSet`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSets:
    """What a recipe reads; only ranks of stage 0 open it (I4)."""

    train: SampleSet | Stream
    val: SampleSet | Stream | None
    num_outputs: int
    num_train: int | None = None
    """Samples of an epoch of a stream; None: as its `len()` says. An endless one needs it."""
    num_val: int | None = None
    """Likewise, of the stream that is validated on."""
    collate: Callable[[list[Any]], Any] | None = None
    """Joins the samples of one micro-batch; None: the data set's own `collate` or `collate_fn`,
    else leaf by leaf."""
    split: Callable[[Any], tuple[Any, Any]] | None = None
    """Gives (input, target) of what `collate` gives, or of a sample where there is no collate."""
    mix: Callable[[tuple[Any, ...], Any], tuple[tuple[Any, ...], Any]] | None = None
    """What becomes of a joined micro-batch of the training samples, (inputs, target) of these two,
    such as mixup. What it draws is seeded by (seed, epoch, samples)."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """What a user of the trained model has to know of the data, such as the names of the classes;
    what JSON can say. It is in each checkpoint, and in a file next to each export."""
    remarks: Sequence[str] = ()
    """Lines about the data that are logged once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataInfo:
    """What every rank has to know about data that only stage 0 reads."""

    num_train: int
    num_val: int
    num_outputs: int
    about: Mapping[str, Any] = field(default_factory=dict)


class Recipe(Protocol):
    """What a recipe file's `recipe(config)` returns. No method may depend on the topology.

    It may also have `num_outputs() -> int`, a quick way to the number that `open_data` will give:
    then a model that depends on it is checked before any rank starts. And about its metrics:

        metric_names = ("top1", "mae")   what metrics() gives, in the order in which it is told
        best = ("mae", "min")            one of them or "loss", and which way is better: min, max
        shares = ("top1",)               are shares of the samples, which are told in percent

    Without `metric_names` the first micro-batch says them, and each step has one more small sum.

        final_metrics(loss, means)       what is told in place of the metrics' means over the
                                         samples, such as {"perplexity": exp(loss)}, floats by name

    Then `best` and `shares` are about what that gives.

    A metric of a validation that is no sum over samples, such as one by rank, has two more:

        evidence(output, target)         tensors (rows, columns) by name, of one micro-batch
        judged(evidence)                 floats by name, of the rows of the whole validation, on
                                         every replica; their order depends on who did what

    `best` and `shares` may name these, where there is `final_metrics` or no `metric_names`.

    And `shapes_vary = True`, where samples are of other shapes from one micro-batch to the next
    also across a cut: then what crosses is described with each message. The model is then told of
    small inputs (of at most 1024 numbers, such as boxes) by their numbers where it is cut.

    And `on_device(*inputs)`: what the model is called with, made of a micro-batch's inputs where it
    computes: so pixels travel as whole numbers, and are normalised there. It gives one value, or a
    tuple of several, as samples do; see `model_inputs`.
    """

    unit: str
    """What one sample is called in the throughput, plural: "images"."""

    def check(self) -> None:
        """Raises ConfigError where the data is missing; must be quick, and open no sample."""

    def open_data(self) -> DataSets:
        """The training and validation samples. Their order must be the same on every node."""

    def model(self, info: DataInfo) -> nn.Module | Sequence[nn.Module]:
        """The unsplit model, or its stages in order where it is already cut.

        The caller has seeded torch; building on the meta device must be possible for the
        launcher's check of the cuts.
        """

    def loss(self, output: Any, target: Any) -> Tensor | tuple[Tensor, Tensor | float] | None:  # noqa: ANN401
        """Scalar mean over the samples of one micro-batch; or (sum, weight).

        The latter is for a mean over anything else, such as labelled pixels: the loss of a step is
        the sum of all its sums over the sum of all its weights. None in a validation: the model
        tells none there.
        """

    def metrics(self, output: object, target: Any) -> dict[str, Tensor]:  # noqa: ANN401
        """Scalar sums over the samples of one micro-batch, such as {"top1": number right}.

        The names must be the same in every call, `metric_names` where the recipe has it. Without
        `best`, the first decides which checkpoint is best (higher is better); the loss, where
        there is none.
        """

    def optimizer(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Optimizer:
        """The optimizer over the named parameters of one stage, learning rate at its highest."""


def model_inputs(recipe: Recipe, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What the model is called with, of what the samples of a micro-batch are stacked to.

    Args:
        recipe: may have `on_device`; without it, the inputs are what the model takes.
        inputs: nested tensors on the device; in CPU memory where only a look is taken.
    """
    hook = getattr(recipe, "on_device", None)
    if hook is None:
        return inputs
    found = hook(*inputs)
    if len(inputs) == 1 and found is inputs[0]:
        return inputs
    return tuple(found) if isinstance(found, tuple) else (found,)


def shapes_vary(recipe: Recipe) -> bool:
    """Whether micro-batches differ in the shapes of their tensors, see `Recipe`."""
    return bool(getattr(recipe, "shapes_vary", False))


def load_recipe(config: TrainConfig) -> Recipe:
    """The recipe that `--recipe` names.

    Raises:
        ConfigError: there is no such recipe, or the file has no function `recipe`.
    """
    name = config.recipe
    if name in BUILT_IN:
        module = importlib.import_module(BUILT_IN[name])
    elif name.endswith(".py"):
        module = module_from_file(name, "--recipe")
    else:
        raise ConfigError(
            f"unknown --recipe {name!r}; {nearest(name, BUILT_IN)}, or a path ending in .py"
        )
    make = getattr(module, "recipe", None)
    if not callable(make):
        raise ConfigError(f"--recipe {name!r} has no function recipe(config)")
    with users_code(f"--recipe {name!r}"):
        return cast(Recipe, make(config))
