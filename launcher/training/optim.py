"""How parameters change: optimizer, learning rate, weight decay, the average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from bundlerun.launcher.choices import LrBy, LrSchedule, OnNan, OptimizerName, WarmupMethod
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.options.bounds import at_least
from bundlerun.launcher.options.declared import flag_of, option, options_of, yes_or_no
from bundlerun.launcher.work_config import WorkConfig

AS_ALL = -1.0
"""A weight decay that is that of all parameters."""
_OPTIM = "optimizer"
_CONSTANT_DECAY = 0.01
_NOT_ONE_CYCLE = ("warmup_method", "warmup_decay", "lr_by")


@dataclass(frozen=True, slots=True, kw_only=True, init=False, repr=False, eq=False)
class OptimConfig(WorkConfig):
    """What a step does with the gradients, and how that changes during the run.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    epochs: int = option(90, "passes over the training data", group=_OPTIM, parse=int, common=True)
    max_steps: int = option(0, "stop after this many steps (0: never)", group=_OPTIM, parse=int)
    optimizer: OptimizerName = option(
        "sgd",
        "optimizer of the recipes that come with bundlerun",
        group=_OPTIM,
        choices=get_args(OptimizerName),
        kept=True,
    )
    lr: float = option(0.1, "highest learning rate", group=_OPTIM, parse=float, common=True)
    momentum: float = option(0.9, "momentum of SGD and RMSprop", group=_OPTIM, parse=float)
    weight_decay: float = option(1e-4, "weight decay", group=_OPTIM, parse=float)
    norm_weight_decay: float = option(
        AS_ALL,
        "weight decay of the scales and biases of norms (-1: as --weight-decay)",
        group=_OPTIM,
        parse=float,
    )
    bias_weight_decay: float = option(
        AS_ALL,
        "weight decay of biases, those of norms included (-1: as --weight-decay)",
        group=_OPTIM,
        parse=float,
    )
    embedding_weight_decay: float = option(
        AS_ALL,
        "weight decay of class tokens, position embeddings and tables of relative positions of "
        "transformers (-1: as --weight-decay)",
        group=_OPTIM,
        parse=float,
    )
    lr_schedule: LrSchedule = option(
        "cosine",
        "how the learning rate changes during the run",
        group=_OPTIM,
        choices=get_args(LrSchedule),
    )
    lr_by: LrBy = option(
        "step",
        "when it changes: with each step, or once per epoch, warm-up and schedule one after the "
        "other as torch's schedulers in sequence",
        group=_OPTIM,
        choices=get_args(LrBy),
    )
    lr_min: float = option(
        0.0, "cosine schedule: the learning rate at the end", group=_OPTIM, parse=float
    )
    warmup_epochs: float = option(
        0.0,
        "epochs of warm-up (one-cycle: length of the rise, 0 means 30 % of the run)",
        group=_OPTIM,
        parse=float,
    )
    warmup_method: WarmupMethod = option(
        "linear",
        "how the learning rate rises: evenly, or in one go when the warm-up is over",
        group=_OPTIM,
        choices=get_args(WarmupMethod),
    )
    warmup_decay: float = option(
        -1.0,
        "learning rate at the start of the warm-up over the highest (-1: linear from next to "
        f"nothing; constant: {_CONSTANT_DECAY})",
        group=_OPTIM,
        parse=float,
    )
    lr_step_epochs: int = option(30, "step schedule: epochs per step", group=_OPTIM, parse=int)
    lr_gamma: float = option(
        0.1,
        "step schedule: factor per step; exponential: factor per epoch",
        group=_OPTIM,
        parse=float,
    )
    label_smoothing: float = option(
        0.0, "share of the target to spread over all classes", group=_OPTIM, parse=float
    )
    clip_norm: float = option(
        0.0, "clip the gradient to this global norm (0: no clipping)", group=_OPTIM, parse=float
    )
    model_ema: bool = option(
        False,
        "keep a moving average of the weights, which validation takes and `export --ema` writes",
        group=_OPTIM,
        parse=yes_or_no,
    )
    model_ema_steps: int = option(
        32, "steps between two moves of the average", group=_OPTIM, parse=int
    )
    model_ema_decay: float = option(
        0.99998,
        "share of the average that a move keeps, if an epoch were a batch of one sample: what is "
        "added is --batch-size times --model-ema-steps over --epochs as much",
        group=_OPTIM,
        parse=float,
    )
    on_nan: OnNan = option(
        "stop",
        "if the loss of a step is not finite: end the run, leave the step out, or ignore it",
        group=_OPTIM,
        choices=get_args(OnNan),
    )

    def __post_init__(self) -> None:
        WorkConfig.__post_init__(self)  # not super(): slots make a class anew
        at_least(1, self, "epochs", "lr_step_epochs")
        at_least(0, self, "max_steps", "lr", "lr_min", "momentum", "weight_decay", "clip_norm")
        at_least(0, self, "warmup_epochs", "label_smoothing", "lr_gamma")
        if self.label_smoothing > 1:
            raise ConfigError(f"--label-smoothing {self.label_smoothing} must be 1 or less")
        for name in ("norm_weight_decay", "bias_weight_decay", "embedding_weight_decay"):
            if getattr(self, name) != AS_ALL:
                at_least(0, self, name)
        if self.optimizer == "sgd-nesterov" and not self.momentum:
            raise ConfigError(
                "--optimizer sgd-nesterov looks ahead along its momentum, and --momentum is 0; use "
                "--momentum 0.9, or --optimizer sgd"
            )
        self._check_lr()
        self._check_average()

    def _check_lr(self) -> None:
        if self.lr_min > self.lr:
            raise ConfigError(
                f"--lr-min {self.lr_min} is above --lr {self.lr}, the highest learning rate"
            )
        if self.lr_min and self.lr_schedule != "cosine":
            raise ConfigError(
                f"--lr-min {self.lr_min} is where a cosine ends, and --lr-schedule is "
                f"{self.lr_schedule}; leave it out, or use --lr-schedule cosine"
            )
        if self.warmup_decay != -1:
            at_least(0, self, "warmup_decay")
            if self.warmup_decay > 1:
                raise ConfigError(f"--warmup-decay {self.warmup_decay} must be 1 or less")
        if self.lr_schedule == "one-cycle":
            for field in options_of(OptimConfig):
                value = getattr(self, field.name)
                if field.name in _NOT_ONE_CYCLE and value != field.default:
                    raise ConfigError(
                        f"{flag_of(field.name)} {value} is not for --lr-schedule one-cycle, whose "
                        "rise is its own; leave it out"
                    )

    def _check_average(self) -> None:
        at_least(1, self, "model_ema_steps")
        at_least(0, self, "model_ema_decay")
        if self.model_ema_decay > 1:
            raise ConfigError(f"--model-ema-decay {self.model_ema_decay} must be 1 or less")

    @property
    def model_ema_weight(self) -> float:
        """What a move of the average adds of the weights, 0 to 1.

        Source: torchvision's references, after pycls: so that the decay need not change with batch
        size and epochs.
        """
        adjusted = self.batch_size * self.model_ema_steps / self.epochs
        return min(1.0, (1.0 - self.model_ema_decay) * adjusted)

    @property
    def warmup_start(self) -> float | None:
        """The learning rate at the start of the warm-up over the highest; None: next to nothing."""
        if self.warmup_decay >= 0:
            return self.warmup_decay
        return _CONSTANT_DECAY if self.warmup_method == "constant" else None
