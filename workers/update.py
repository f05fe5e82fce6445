"""What a step does to the parameters of one stage, once all sums are there.

    sums of the step -> scaled to the step's mean -> clipped -> learning rate -> optimizer

Scale and norm need what other stages know. Each bundle takes them together, and all bundles have
the same numbers, so every rank does the same.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from launcher.config import TrainConfig
from launcher.errors import ConfigError
from workers.lr import lr_factor
from workers.param_groups import ParamGroups
from workers.session import Session


class StepLoss(NamedTuple):
    """The loss of a step, summed over all bundles; zeros on other stages than the last."""

    share: float
    """See `workers.loss`."""
    weight: float
    num_weighted: float
    """Ranks whose losses said a weight."""

    def scale(self, num_samples: int) -> float:
        """What makes the mean of the share, and of gradients.

        Where all weights of a step together are 0, nothing in it counts: loss and gradients are 0.
        """
        if not self.num_weighted:
            return 1.0
        return num_samples / self.weight if self.weight else 0.0

    def mean(self, num_samples: int) -> float:
        """The loss of the step."""
        return self.share * self.scale(num_samples)


class Update:
    """Changes the parameters of one stage.

    Args:
        config: of the run.
        session: this rank's place.
        stage: has the gradients.
        optimizer: over its parameters.
        groups: of the optimizer, learning rate at its highest.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        stage: nn.Module,
        optimizer: Optimizer,
        groups: ParamGroups,
    ) -> None:
        self._config = config
        self._session = session
        self._stage = stage
        self._optimizer = optimizer
        self._groups = groups
        self._is_weighted: bool | None = None
        """Whether losses say their weight; None: not known yet."""

    def apply(self, loss: StepLoss, *, num_samples: int, step: int, steps_per_epoch: int) -> None:
        """Does it.

        Collective: the bundle.

        Args:
            loss: of the step.
            num_samples: of the step.
            step: its number in the run.
            steps_per_epoch: for the learning rate.

        Raises:
            ConfigError: some losses say a weight and others do not.
        """
        gradients = [p.grad for p in self._stage.parameters() if p.grad is not None]
        scale = self._scale(loss, num_samples, gradients)
        if scale != 1.0:
            for gradient in gradients:
                gradient.mul_(scale)
        self._groups.set_lr(lr_factor(self._config, step, steps_per_epoch))
        self._optimizer.step()

    def _scale(self, loss: StepLoss, num_samples: int, gradients: list[Tensor]) -> float:
        """What gradients are to be multiplied by, for the step's mean and its clipped norm."""
        most = self._config.clip_norm
        scale, square = loss.scale(num_samples), _square(gradients) if most else 0.0
        if most or self._is_weighted is not False:
            mine = [scale, float(bool(loss.num_weighted)), square]
            words = self._session.gather_bundle(mine)
            scale, is_weighted, _ = words[-1]  # the last stage knows the loss
            self._note(bool(is_weighted))
            positions = self._session.topology.positions
            firsts = (w[2] for w, (_, replica) in zip(words, positions, strict=True) if not replica)
            square = math.fsum(firsts)
        elif loss.num_weighted:
            self._note(True)
        if not most:
            return scale
        norm = scale * math.sqrt(square)
        return scale * min(1.0, most / (norm + 1e-6))

    def _note(self, is_weighted: bool) -> None:
        if self._is_weighted not in (None, is_weighted):
            raise ConfigError(
                "loss() gives (sum, weight) in some steps and a mean in others; let it give the "
                "same in all"
            )
        self._is_weighted = is_weighted


def _square(gradients: list[Tensor]) -> float:
    """The square of their norm together.

    Source: `torch.nn.utils.clip_grad_norm_`.
    """
    if not gradients:
        return 0.0
    return math.fsum(torch.stack([_real(g).double().square().sum() for g in gradients]).tolist())


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
