"""The moving average of a stage's weights, beside them: what is validated, and may be exported.

    every --model-ema-steps of an epoch:   average = average + weight * (weights - average)
    in the warm-up, and once after it:     average = weights

Each stage averages what it has, and all replicas have the same numbers, so all averages are equal.

Source: ExponentialMovingAverage of torchvision's references, on `torch.optim.swa_utils`. Theirs
averages whole numbers, too, and cuts off what is behind the point; here they are copied.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import CheckpointError
from bundlerun.launcher.run_folder.checkpoints import AVERAGE
from bundlerun.workers.values.module_tensors import tensor_places

log = logging.getLogger(__name__)


def is_due(config: TrainConfig, step: int, steps_per_epoch: int) -> bool:
    """Whether the average moves after `step` of the run (from 0)."""
    return step % steps_per_epoch % config.model_ema_steps == 0


def is_copy(config: TrainConfig, step: int, steps_per_epoch: int) -> bool:
    """Whether it becomes the weights then; a pure function, as a restart does not know the past."""
    epoch, in_epoch = divmod(step, steps_per_epoch)
    warmup = 0.0 if config.lr_schedule == "one-cycle" else config.warmup_epochs
    # Until the first time after the warm-up, nothing has been averaged.
    return epoch < warmup or (epoch == math.ceil(warmup) and in_epoch == 0)


class Average:
    """The average of one stage; of nothing, where --model-ema is not given.

    Args:
        config: of the run.
        stage: parameters and kept buffers, on the device.
        speaks: whether this rank says what is to be told.
    """

    def __init__(self, config: TrainConfig, stage: nn.Module, *, speaks: bool = False) -> None:
        self._config = config
        self._stage = stage
        self._speaks = speaks
        self._places = [p for p in tensor_places(stage) if p.is_kept] if config.model_ema else []
        self._tensors = [p.tensor.detach().clone() for p in self._places]
        self._due: bool | None = None
        """Whether it is to become the weights; None: nothing is due."""

    @property
    def is_kept(self) -> bool:
        """Whether there is any; on all ranks alike."""
        return self._config.model_ema

    def expect(self, step: int, steps_per_epoch: int) -> None:
        """Says which step the weights are of when `follow` is called next."""
        if self._config.model_ema and is_due(self._config, step, steps_per_epoch):
            self._due = is_copy(self._config, step, steps_per_epoch)

    @torch.no_grad()
    def follow(self) -> None:
        """Moves the average, where the step is one after which it moves and it has not yet."""
        if self._due is None or not self._places:
            self._due = None
            return
        is_copy, self._due = self._due, None
        pairs = list(zip(self._tensors, (p.tensor.detach() for p in self._places), strict=True))
        moving = [] if is_copy else [pair for pair in pairs if _is_real(pair[0])]
        if moving:
            averages, weights = (list(each) for each in zip(*moving, strict=True))
            torch._foreach_lerp_(averages, weights, self._config.model_ema_weight)
        for average, own in pairs:
            if is_copy or not _is_real(average):
                average.copy_(own)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """In here the stage has the average for its weights, and this has the weights.

        Nobody may be copying the state meanwhile.
        """
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # Numbers, not tensors: compiled code and graphs of a GPU know those where they are.
        for average, place in zip(self._tensors, self._places, strict=True):
            own = place.tensor.detach()
            kept = own.clone()
            own.copy_(average)
            average.copy_(kept)

    def state(self, *, without: Collection[str] = ()) -> dict[str, Tensor]:
        """The average by name, as `workers.state.named` has the weights; not copied."""
        return {AVERAGE + n: t for n, t in self._by_name().items() if n not in without}

    def _by_name(self) -> dict[str, Tensor]:
        """Under all names: another cut may know what is tied by another of them."""
        known = {id(p.tensor): t for p, t in zip(self._places, self._tensors, strict=True)}
        if not known:
            return {}
        kept = self._stage.state_dict(keep_vars=True)
        return {name: known[id(own)] for name, own in kept.items() if id(own) in known}

    def names(self, available: Iterable[str]) -> list[str]:
        """Those of the names `available` in a state that are of this stage."""
        own = {AVERAGE + name for name in self._by_name()}
        return [name for name in available if name in own]

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave; the weights, where the run had no average before.

        Raises:
            CheckpointError: it is of another model.
        """
        own = self._by_name()
        found = {n: tensors[AVERAGE + n] for n in own if AVERAGE + n in tensors}
        if own and not found and self._speaks:
            log.info("the state to resume from has no average of the weights: it begins with them")
        for name, average in own.items():
            given = found.get(name)
            if found and (given is None or given.shape != average.shape):
                raise CheckpointError(
                    f"the average of {name!r} in the checkpoint is not one of this model's; is it "
                    "of another --model?"
                )
            if given is not None:
                average.copy_(given)
        if not found:
            for average, place in zip(self._tensors, self._places, strict=True):
                average.copy_(place.tensor.detach())


def _is_real(tensor: Tensor) -> bool:
    """Whether an average of it means anything."""
    return tensor.is_floating_point() or tensor.is_complex()
