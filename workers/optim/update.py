"""What a step does to the parameters of one stage, once all sums are there.

    sums of the step -> [1] scaled to its mean -> [2] clipped -> [3] learning rate -> [4] optimizer

Scale and norm need what other stages know. Each bundle takes them together, and all bundles have
the same numbers, so every rank does the same. Norms come to the processor together with the sums
of the step: between these and the optimizer nothing waits for the device. Where no number can
change what [3] and [4] do, a GPU gets their work before the rank waits for the numbers.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError, DivergedError
from bundlerun.splits.shared import counted_elsewhere
from bundlerun.workers.device.accelerator import is_gpu
from bundlerun.workers.optim.loss_scale import LossScale
from bundlerun.workers.optim.lr import lr_factor
from bundlerun.workers.optim.param_groups import ParamGroups
from bundlerun.workers.optim.parts import step_of
from bundlerun.workers.rank.arrival.session import Session
from bundlerun.workers.values.norms import norms_of

Change = Callable[[Sequence[nn.Parameter]], None]
"""Changes parameters by their gradients."""
MOST_LEFT_OUT = 20
"""Steps in a row; then leaving out leads nowhere."""

log = logging.getLogger(__name__)


class StepLoss(NamedTuple):
    """The loss of a step, summed over all bundles; zeros on other stages than the last."""

    share: float
    """See `bundlerun.workers.pipeline.loss`."""
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

    @property
    def is_of_nothing(self) -> bool:
        """Whether there were losses, and nothing in them counts."""
        return self.num_weighted > 0 and not self.weight

    def mean(self, num_samples: int) -> float:
        """The loss of the step."""
        return self.share * self.scale(num_samples)


class _Found(NamedTuple):
    """What all ranks know of a step: the factor of its gradients, their norm, the loss."""

    scale: float
    norm: float
    """Without the loss scale; 0 where nothing asks for it."""
    loss: float

    @property
    def is_finite(self) -> bool:
        """Whether both loss and gradients are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Update:
    """Changes the parameters of one stage.

    Args:
        config: of the run.
        session: this rank's place.
        stage: has the gradients.
        optimizer: over its parameters.
        groups: of the optimizer, learning rate at its highest.
        loss_scale: what the gradients are multiplied by.
    """

    def __init__(
        self,
        config: TrainConfig,
        session: Session,
        stage: nn.Module,
        optimizer: Optimizer,
        groups: ParamGroups,
        loss_scale: LossScale,
    ) -> None:
        self._config = config
        self._session = session
        self._stage = stage
        self._optimizer = optimizer
        self._groups = groups
        self._loss_scale = loss_scale
        self._is_weighted: bool | None = None
        """Whether losses say their weight; None: not known yet."""
        self._num_left_out = 0
        self._is_ahead = False
        # A norm over all stages counts what several have once.
        self._counted_elsewhere = counted_elsewhere(stage, session.place.stage)
        self._no_norms = torch.zeros(0, dtype=torch.float64, device=session.device)

    @property
    def is_weighted(self) -> bool:
        """Whether losses are known to say a weight: then each step has a scale of its own."""
        return bool(self._is_weighted)

    def norms(self) -> Tensor:
        """The norm of each gradient, (n,), in float64; none where nothing asks for them.

        What several stages share is with those of its owner.
        """
        if not self.wants_norms:
            return self._no_norms
        own = (p for p in self._stage.parameters() if p not in self._counted_elsewhere)
        norms = norms_of([p.grad for p in own if p.grad is not None])
        return torch.stack(norms) if norms else self._no_norms

    @property
    def wants_norms(self) -> bool:
        """Whether the step is decided on by all gradients."""
        # It costs a look at all gradients.
        asks = bool(self._config.clip_norm) or self._config.on_nan == "skip"
        return asks or self._loss_scale.is_dynamic

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self._stage.parameters() if p.grad is not None]

    def go_ahead(self, step: int, steps_per_epoch: int) -> None:
        """Does [3] and [4] before anything of the step is known, where that can change neither.

        On the CPU nothing is gained. Once it is known `apply` may still end the run: nobody may
        keep the state until then, nor change parameters.

        Args:
            step: its number in the run.
            steps_per_epoch: for the learning rate.
        """
        is_settled = not self.wants_norms and self._is_weighted is False
        self._is_ahead = is_settled and is_gpu(self._session.device)
        if self._is_ahead:
            self._change(step, steps_per_epoch)

    @property
    def is_ahead(self) -> bool:
        """Whether it has, and `apply` has not been called yet."""
        return self._is_ahead

    def _change(self, step: int, steps_per_epoch: int) -> None:
        # [3]
        self._groups.set_lr(lr_factor(self._config, step, steps_per_epoch))
        # [4]
        self._optimizer.step()

    def apply(
        self,
        loss: StepLoss,
        norms: Sequence[float],
        *,
        num_samples: int,
        step: int,
        steps_per_epoch: int,
    ) -> bool:
        """Does it.

        Collective: the bundle.

        Args:
            loss: of the step.
            norms: what `norms` gave.
            num_samples: of the step.
            step: its number in the run.
            steps_per_epoch: for the learning rate.

        Returns:
            Whether the step counts; not where --on-nan skip leaves it out, or the loss scale was
            too large. All ranks agree.

        Raises:
            ConfigError: some losses say a weight and others do not.
            DivergedError: loss or gradients are no finite numbers, and --on-nan says to end.
        """
        scale = self._decide(loss, norms, num_samples, step)
        if scale is None:
            return False
        if self._is_ahead:
            self._is_ahead = False
        else:
            # [1] and [2] in one multiplication, and none where nothing changes.
            if scale != 1.0 and (gradients := self._gradients()):
                torch._foreach_mul_(gradients, scale)
            self._change(step, steps_per_epoch)
        return True

    def in_parts(
        self, loss: StepLoss, *, num_samples: int, step: int, steps_per_epoch: int
    ) -> Change | None:
        """As `apply`, before the sums of gradients are there: what does it, a part at a time.

        Collective: the bundle. Only where no norm is asked for (`wants_norms`).

        Returns:
            What changes parameters whose gradients are there; each of the stage is to be given to
            it once, before the next call of anything here. None: the step is left out.
        """
        scale = self._decide(loss, (), num_samples, step)
        if scale is None:
            return None
        factor = scale  # [3]
        self._groups.set_lr(lr_factor(self._config, step, steps_per_epoch))

        def change(parameters: Sequence[nn.Parameter]) -> None:
            gradients = [p.grad for p in parameters if p.grad is not None]
            if factor != 1.0 and gradients:
                torch._foreach_mul_(gradients, factor)
            # [4]
            if gradients:
                step_of(self._optimizer, parameters)

        return change

    def _decide(
        self, loss: StepLoss, norms: Sequence[float], num_samples: int, step: int
    ) -> float | None:
        """What gradients are multiplied by; None where the step is left out."""
        # All that the device has to say of the step, and all that decides on it.
        found = self._agree(loss, num_samples, norms)
        if self._is_left_out(found, step):
            # Before anything is changed: parameters and optimizer state stay as they were.
            self._loss_scale.is_over()
            return None
        self._num_left_out = 0
        self._loss_scale.is_good()
        return found.scale

    def _is_left_out(self, found: _Found, step: int) -> bool:
        if self._config.on_nan == "ignore":
            # As plain torch: its scaler looks at the gradients, and nobody at the loss.
            return self._loss_scale.is_dynamic and not math.isfinite(found.norm)
        if not found.is_finite:
            self._leave_out(found, step)
        return not found.is_finite

    def _leave_out(self, found: _Found, step: int) -> None:
        self._num_left_out += 1
        what = f"the loss of step {step + 1} is {found.loss:g}"
        is_over = math.isfinite(found.loss)
        if is_over:
            what = f"the gradient of step {step + 1} is no finite number"
        if is_over and self._loss_scale.is_dynamic:
            what += f", at the loss scale {self._loss_scale.value:g}, which is halved"
        elif self._config.on_nan == "stop":
            raise DivergedError(
                f"{what}; nothing of this step was kept, and checkpoints are as they were; use a "
                "lower --lr, --clip-norm or --warmup-epochs, or leave such steps out with "
                "--on-nan skip"
            )
        if self._num_left_out >= MOST_LEFT_OUT:
            raise DivergedError(
                f"{what}, as in the {MOST_LEFT_OUT - 1} steps before, which were all left out; use "
                "a lower --lr, --clip-norm or --warmup-epochs, and look at the data"
            )
        if self._session.is_reporter:
            log.warning("%s: the step is left out", what)

    def _agree(self, loss: StepLoss, num_samples: int, norms: Sequence[float]) -> _Found:
        """The result of the step, the same on all ranks that need it."""
        most = self._config.clip_norm
        scale, mean = loss.scale(num_samples), loss.mean(num_samples)
        square = math.fsum(norm * norm for norm in norms)
        # A gather per step only where needed; the first step finds out whether losses have weights.
        if self.wants_norms or self._is_weighted is None or self._is_weighted:
            words = self._session.gather_bundle([scale, mean, square, loss.num_weighted])
            scale, mean, _, num_weighted = words[-1]  # the last stage knows the loss
            self._note(num_weighted > 0)
            positions = self._session.topology.positions
            # Replicas of a stage have the same gradients: one of each stage counts.
            firsts = (w[2] for w, (_, replica) in zip(words, positions, strict=True) if not replica)
            square = math.fsum(firsts)
        elif loss.num_weighted:
            self._note(True)
        # Gradients are not scaled yet: scale * norm is their norm afterwards.
        norm = math.sqrt(square) / self._loss_scale.value
        if most and math.isfinite(mean) and math.isfinite(norm):
            scale *= min(1.0, most / (scale * norm + 1e-6))
        return _Found(scale / self._loss_scale.value, norm, mean)

    def _note(self, is_weighted: bool) -> None:
        if self._is_weighted not in (None, is_weighted):
            raise ConfigError(
                "loss() gives (sum, weight) in some steps and a mean in others; let it give the "
                "same in all"
            )
        self._is_weighted = is_weighted
