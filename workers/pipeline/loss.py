"""The loss of one micro-batch, as a share of the loss of the whole step.

    loss() gives          share of the step's loss, known at once      in the end divided by
    a mean                mean x samples / samples of the step         nothing: it is the mean
    (sum, weight)         sum / samples of the step                    weight / samples, of the step

The weight of a step is known when all its forwards are done, and backwards begin before that. So
gradients are those of the shares, and all are scaled once their sums are there
(`bundlerun.workers.optim.update`).
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.random_state import kept_random_state
from bundlerun.workers.device import accelerator as door
from bundlerun.workers.recipe import Recipe
from bundlerun.workers.step import Share
from bundlerun.workers.values.nest import leaves, mapped

log = logging.getLogger(__name__)

_MOST_COPIED_BYTES = 64 << 20
_RIGHT = "a mean over the samples, a scalar tensor, or (sum, weight)"


def share_of(found: object, size: int, num_samples: int, *, may_be_none: bool = False) -> Share:
    """The share of a micro-batch.

    Args:
        found: what `Recipe.loss` gave.
        size: samples of the micro-batch.
        num_samples: of the step, over all bundles.
        may_be_none: whether there need not be any, as in a validation.

    Raises:
        ConfigError: it is neither a scalar nor (sum, weight).
    """
    if found is None and may_be_none:
        return Share(torch.zeros(()), 0.0)
    if isinstance(found, Tensor) and found.numel() == 1:
        return Share(found * (size / num_samples), None)
    pair = found if isinstance(found, (tuple, list)) and len(found) == 2 else None
    loss, weight = (found, None) if pair is None else pair
    if not isinstance(loss, Tensor):
        raise ConfigError(f"loss() gives {type(found).__name__}, not {_RIGHT}")
    for name, value in (("loss()", loss), ("the weight of loss()", weight)):
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ConfigError(f"{name} gives the shape {list(value.shape)}, not {_RIGHT}")
    if not isinstance(weight, (Tensor, int, float)):
        raise ConfigError(f"loss() gives a weight of type {type(weight).__name__}, not {_RIGHT}")
    # Counts in bfloat16 would add up only to 256.
    wide = weight.detach().double() if isinstance(weight, Tensor) else float(weight)
    return Share(loss / num_samples, wide)


class LossCheck:
    """Warns if a loss is a mean over something else than samples; looks at the first of them only.

    Such a loss (class weights, ignore_index, a mean over boxes) depends on how the batch is cut
    into micro-batches. The loss of some samples at once is compared with the mean of their single
    losses; a difference is logged once. A loss that is random or remembers its calls is not
    compared.

    Args:
        recipe: its loss is called on a copy, so that nothing of it changes; where the copy would
            be a large one, nothing is compared.
        device: where the samples are.
        tolerance: relative, of the numbers compared.
    """

    SAMPLES = 64
    """Enough to meet a rare class, few enough to cost nothing."""

    def __init__(self, recipe: Recipe, device: torch.device, tolerance: float = 1e-3) -> None:
        self._loss = _copied(recipe)
        self._device = device
        self._tolerance = tolerance
        self._left = self.SAMPLES
        self._single: tuple[object, object] | None = None

    def look(self, found: object, output: object, target: object, size: int) -> None:
        """Compares one micro-batch; two of a single sample each are joined.

        Args:
            found: what `Recipe.loss` gave.
            output: of the model.
            target: of the data.
            size: samples of the micro-batch.
        """
        if self._left <= 0:
            return
        self._left -= size
        is_scalar = isinstance(found, Tensor)
        if self._loss is None or not is_scalar or not _is_cut_by_sample((output, target), size):
            self._left = 0
            return
        output, target = mapped(_detached, (output, target))
        # One sample's loss is its own mean: nothing to compare before there is a second one.
        if size == 1:
            if self._single is None:
                self._single = output, target
                return
            output, target = _joined(self._single, (output, target))
            self._single, size = None, 2
        # A check that draws numbers would change the training that it checks.
        with torch.no_grad(), kept_random_state(), door.kept_random_state(self._device):
            self._compare(self._loss, output, target, size)

    def _compare(
        self, loss: Callable[[Any, Any], Any], output: object, target: object, size: int
    ) -> None:
        try:
            # Twice: a loss that is random or remembers its calls differs from itself.
            whole, again = float(loss(output, target)), float(loss(output, target))
            parts = [mapped(itemgetter(slice(i, i + 1)), (output, target)) for i in range(size)]
            mean = math.fsum(float(loss(*part)) for part in parts) / size
        except Exception as exc:
            # A user's loss may rely on the number of samples; then there is nothing to compare.
            self._left = 0
            log.info("loss() takes no single samples, and is not compared with them: %s", exc)
            return
        if not math.isfinite(whole) or not self._alike(whole, again):
            self._left = 0
        elif not self._alike(whole, mean):
            self._left = 0
            log.warning(
                "the loss of %d samples at once is %.6g, the mean of their single losses %.6g: it "
                "is no mean over samples, so the training depends on --microbatch-size; let "
                "loss() return (sum, weight), as docs/recipes.md says",
                size, whole, mean,
            )  # fmt: skip

    def _alike(self, one: float, other: float) -> bool:
        return abs(one - other) <= self._tolerance * max(abs(one), abs(other)) + 1e-7


def _is_cut_by_sample(value: object, size: int) -> bool:
    """Whether each leaf has a first dimension of one entry per sample."""
    return all(
        isinstance(leaf.value, Tensor) and leaf.value.ndim and len(leaf.value) == size
        for leaf in leaves(value)
    )


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach()


def _joined(one: object, other: object) -> Any:  # noqa: ANN401 (as they are)
    others: Iterator[Any] = (leaf.value for leaf in leaves(other))
    return mapped(lambda tensor: torch.cat([tensor, next(others)]), one)


def _copied(recipe: Recipe) -> Callable[[Any, Any], Any] | None:
    """The loss of a copy of the recipe, with modules, lists and tensors of its own."""
    own = copy.copy(recipe)
    for name, value in list(getattr(own, "__dict__", {}).items()):
        if isinstance(value, nn.Module):
            if sum(t.nbytes for t in (*value.parameters(), *value.buffers())) > _MOST_COPIED_BYTES:
                return None
            setattr(own, name, copy.deepcopy(value))
        elif isinstance(value, Tensor) and value.nbytes <= _MOST_COPIED_BYTES:
            setattr(own, name, value.clone())
        elif isinstance(value, (list, dict, set)):
            setattr(own, name, copy.copy(value))
    return own.loss
