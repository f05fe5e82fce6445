"""The training configuration: every option of `bundlerun.workers.train`, checked once."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import get_args

from bundlerun.launcher.choices import (
    WITHOUT_EXCHANGE,
    Augment,
    ExchangeDtype,
    LrSchedule,
    OnNan,
    OnOff,
    OptimizerName,
    Precision,
    ScheduleChoice,
    SchemeChoice,
    Share,
    TransportChoice,
)
from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.layout.chunks import Chunks
from bundlerun.launcher.layout.microbatch import (
    LEAST_SAMPLES,
    MOST_SAMPLES,
    default_samples,
    divisors,
)
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.model_name import OF_IMAGES
from bundlerun.launcher.options.declared import (
    Reader,
    argv_of,
    flag_of,
    option,
    text_list,
    yes_or_no,
)

_WHAT = "what to train"
_BATCH = "batch and bundles"
_OPTIM = "optimizer"
_DATA = "data"
_RUN = "run"
_SNAPSHOT = "snapshot"
_TUNE = "execution"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """What a training run does, the same on every rank.

    Raises:
        ConfigError: a value is out of range or two values contradict each other.
    """

    data: str = ""

    recipe: str = option(
        OF_IMAGES,
        "image-classification, characters, or your own path/to/file.py",
        group=_WHAT,
    )
    model: str = option(
        "resnet18",
        "torchvision model, or your own path/to/file.py:build",
        group=_WHAT,
        kept=True,
    )
    cut: tuple[str, ...] = option(
        (),
        "where each stage after the first begins: module or node names (layer3.10), "
        "a named cut of the family, or a number of equal parts",
        group=_WHAT,
        parse=Reader(text_list, metavar="NAME[,NAME...]"),
    )
    num_classes: int = option(
        0, "classes of the model (0: as many as the data has)", group=_WHAT, parse=int, kept=True
    )

    shape: Shape = option(
        Shape((1, 1)),
        "devices per stage of a bundle; 1 is data parallel only (default on a single device: 1)",
        group=_BATCH,
        parse=Reader(Shape.parse, "whole numbers separated by commas", "W[,W...]"),
    )
    batch_size: int = option(
        256, "samples of one step, over all bundles", group=_BATCH, parse=int, kept=True
    )
    microbatch_size: int = option(
        0,
        f"samples of one micro-batch (0: up to {MOST_SAMPLES}, or down to {LEAST_SAMPLES} if many "
        "bundles or stages need more micro-batches; fixed at the first start of a run)",
        group=_BATCH,
        parse=int,
    )
    chunks: int = option(
        1,
        "chunks of the model per stage, not next to each other; above 1 the passes are interleaved",
        group=_BATCH,
        parse=int,
    )
    schedule: ScheduleChoice = option(
        "auto",
        "order of forward and backward passes in a bundle (auto: 1f1b; eager-1f1b if a bundle "
        "spans nodes; interleaved with --chunks)",
        group=_BATCH,
        choices=get_args(ScheduleChoice),
    )
    share: Share = option(
        "measured",
        "how bundles share the micro-batches: equally, or by the speed measured at each epoch",
        group=_BATCH,
        choices=get_args(Share),
    )

    epochs: int = option(90, "passes over the training data", group=_OPTIM, parse=int)
    max_steps: int = option(0, "stop after this many steps (0: never)", group=_OPTIM, parse=int)
    optimizer: OptimizerName = option(
        "sgd",
        "optimizer of the recipes that come with bundlerun",
        group=_OPTIM,
        choices=get_args(OptimizerName),
        kept=True,
    )
    lr: float = option(0.1, "highest learning rate", group=_OPTIM, parse=float)
    momentum: float = option(0.9, "momentum of SGD", group=_OPTIM, parse=float)
    weight_decay: float = option(1e-4, "weight decay", group=_OPTIM, parse=float)
    lr_schedule: LrSchedule = option(
        "cosine",
        "how the learning rate changes during the run",
        group=_OPTIM,
        choices=get_args(LrSchedule),
    )
    warmup_epochs: float = option(
        0.0,
        "epochs of linear warm-up (one-cycle: length of the rise, 0 means 30 % of the run)",
        group=_OPTIM,
        parse=float,
    )
    lr_step_epochs: int = option(30, "step schedule: epochs per step", group=_OPTIM, parse=int)
    lr_gamma: float = option(0.1, "step schedule: factor per step", group=_OPTIM, parse=float)
    label_smoothing: float = option(
        0.0, "share of the target to spread over all classes", group=_OPTIM, parse=float
    )
    clip_norm: float = option(
        0.0, "clip the gradient to this global norm (0: no clipping)", group=_OPTIM, parse=float
    )
    on_nan: OnNan = option(
        "stop",
        "if the loss of a step is not finite: end the run, leave the step out, or ignore it",
        group=_OPTIM,
        choices=get_args(OnNan),
    )

    image_size: int = option(224, "side of the image, pixels", group=_DATA, parse=int)
    augment: Augment = option(
        "imagenet",
        "imagenet: random resized crop and flip; none: resize only",
        group=_DATA,
        choices=get_args(Augment),
    )
    loader_workers: int = option(
        -1,
        "loading processes per rank that reads data (-1: by free cores)",
        group=_DATA,
        parse=int,
        per_node=True,
    )
    prefetch: int = option(
        2, "micro-batches that each of them reads ahead", group=_DATA, parse=int, per_node=True
    )
    skip_unreadable: bool = option(
        False, "skip unreadable images and count them", group=_DATA, parse=yes_or_no
    )
    synthetic_samples: int = option(
        1024, "training samples of the data set `synthetic`", group=_DATA, parse=int, kept=True
    )

    run_dir: str = option(
        "",
        "run folder; a run that is in it is resumed (default: a new folder in runs/, linked as "
        "runs/latest)",
        group=_RUN,
        per_node=True,
    )
    seed: int = option(0, "seed of everything random", group=_RUN, parse=int, kept=True)
    log_steps: int = option(
        10, "steps between progress lines", group=_RUN, parse=int, per_node=True
    )
    checkpoint_steps: int = option(
        0, "steps between checkpoints (0: only at each epoch's end)", group=_RUN, parse=int
    )
    keep: int = option(3, "newest checkpoints to keep; the best is kept too", group=_RUN, parse=int)
    validate: bool = option(True, "validate after each epoch", group=_RUN, parse=yes_or_no)
    tensorboard: bool = option(
        False, "write TensorBoard events too", group=_RUN, parse=yes_or_no, per_node=True
    )

    snapshot: OnOff = option(
        "on",
        "after each step, copy the state to the memory of the nodes, for fast restarts",
        group=_SNAPSHOT,
        choices=get_args(OnOff),
    )
    snapshot_dir: str = option(
        "",
        "folder of each node for the snapshots (default: /dev/shm, or the temporary folder if "
        "that is too small)",
        group=_SNAPSHOT,
        per_node=True,
    )
    snapshot_steps: int = option(
        0,
        "steps between snapshots (0: automatic, so that they cost less than 1 % of the time)",
        group=_SNAPSHOT,
        parse=int,
    )

    precision: Precision = option(
        "float32",
        "float32, bfloat16 (autocast) or float64",
        group=_TUNE,
        choices=get_args(Precision),
    )
    compile: bool = option(False, "torch.compile each stage", group=_TUNE, parse=yes_or_no)
    transport: TransportChoice = option(
        "auto",
        "how ranks communicate: nccl, cpu (through its memory), or auto: nccl where known to work",
        group=_TUNE,
        choices=get_args(TransportChoice),
    )
    sync: SchemeChoice = option(
        "auto",
        "how gradients are summed: local-master, sharded (several leaders per node), flat (one "
        "all-reduce), or auto: the fastest by measurement",
        group=_TUNE,
        choices=get_args(SchemeChoice),
    )
    exchange_dtype: ExchangeDtype = option(
        "float32",
        "type of float32 gradients between nodes; bfloat16 halves the bytes, with error feedback",
        group=_TUNE,
        choices=get_args(ExchangeDtype),
    )
    bucket_mb: float = option(
        0.0, "size of a sync bucket, MB (0: by the number of nodes)", group=_TUNE, parse=float
    )
    timeout_s: float = option(
        300.0, "longest wait for another rank, seconds", group=_TUNE, parse=float, per_node=True
    )
    threads: int = option(
        0,
        "compute threads per rank (0: OMP_NUM_THREADS if set, else 1, or all cores if the node "
        "has one rank)",
        group=_TUNE,
        parse=int,
        per_node=True,
    )
    affinity: bool = option(
        True,
        "pin each rank to its share of the cores, unless another job of yours is pinned there",
        group=_TUNE,
        parse=yes_or_no,
        per_node=True,
    )
    verify_replicas: bool = option(
        False, "check after each step that all replicas are bit-equal", group=_TUNE, parse=yes_or_no
    )

    def __post_init__(self) -> None:
        _at_least(1, self, "batch_size", "epochs", "chunks", "keep", "log_steps", "image_size")
        _at_least(1, self, "lr_step_epochs", "synthetic_samples", "prefetch")
        _at_least(0, self, "microbatch_size", "max_steps", "checkpoint_steps", "threads")
        _at_least(0, self, "num_classes", "lr", "momentum", "weight_decay", "clip_norm", "seed")
        _at_least(0, self, "warmup_epochs", "label_smoothing", "lr_gamma", "snapshot_steps")
        _at_least(-1, self, "loader_workers")
        _at_least(0, self, "bucket_mb")
        _finite_above_0(self, "timeout_s")
        if self.label_smoothing > 1:
            raise ConfigError(f"--label-smoothing {self.label_smoothing} must be 1 or less")
        if self.sync in WITHOUT_EXCHANGE and self.exchange_dtype != "float32":
            raise ConfigError(
                f"--exchange-dtype {self.exchange_dtype} rounds what travels between nodes, and "
                f"--sync {self.sync} has no step of its own for that; use --sync local-master or "
                "auto"
            )
        if self.microbatch_size and self.batch_size % self.microbatch_size:
            raise ConfigError(
                f"--batch-size {self.batch_size} is not a multiple of --microbatch-size "
                f"{self.microbatch_size}; use one of {divisors(self.batch_size)}"
            )
        self._check_schedule()
        self._check_cut()

    def _check_schedule(self) -> None:
        if self.schedule == "interleaved" and self.chunks == 1:
            raise ConfigError(
                "--schedule interleaved needs --chunks 2 or more, chunks to change between; "
                "use --chunks 2, or --schedule 1f1b"
            )
        if self.chunks > 1 and self.schedule not in ("auto", "interleaved"):
            raise ConfigError(
                f"--schedule {self.schedule} has no order for --chunks {self.chunks}; use "
                "--schedule interleaved, or --chunks 1"
            )
        if self.chunks > 1 and self.shape.num_stages == 1:
            raise ConfigError(
                f"--chunks {self.chunks} of one stage follow each other on the same device; use "
                "--chunks 1, or a --shape of two stages or more"
            )
        if self.schedule == "zero-bubble" and self.compile:
            raise ConfigError(
                "--schedule zero-bubble takes each backward apart, which --compile makes one "
                "piece; use --schedule 1f1b, or --no-compile"
            )

    def _check_cut(self) -> None:
        shape, count = f"--shape {self.shape}", self.num_chunks
        has, parts = f"{shape} has {count}", "stages"
        if self.chunks > 1:
            has, parts = f"{shape} with --chunks {self.chunks} has {count}", "chunks"
        # One number is not a name: it asks for that many equal parts.
        is_number = len(self.cut) == 1 and self.cut[0].isdecimal()
        if self.cut and not is_number and len(self.cut) != count - 1:
            raise ConfigError(
                f"--cut {','.join(self.cut)} makes {len(self.cut) + 1} {parts}, {has}; "
                f"give one cut less than {parts}"
            )
        if is_number and int(self.cut[0]) != count:
            raise ConfigError(
                f"--cut {self.cut[0]} makes {self.cut[0]} equal parts, {has} {parts}; "
                "give the same number"
            )

    @property
    def num_chunks(self) -> int:
        """Chunks of the whole model; stages, where each has one."""
        return Chunks(self.shape.num_stages, self.chunks).num_chunks

    @property
    def samples_per_microbatch(self) -> int:
        """Samples of a full micro-batch; the default for one bundle while none is set."""
        if self.microbatch_size:
            return self.microbatch_size
        return default_samples(self.batch_size, self.shape.num_stages, 1)

    @property
    def num_microbatches(self) -> int:
        """Micro-batches of a full step, over all bundles."""
        return self.batch_size // self.samples_per_microbatch

    def to_argv(self) -> list[str]:
        """The command line of `bundlerun.workers.train` that stands for this configuration."""
        return [*argv_of(self), *([self.data] if self.data else [])]

    def to_plain(self) -> dict[str, object]:
        """The configuration as plain values, by field; what files have of it."""
        return {**asdict(self), "shape": self.shape.widths}

    def to_json(self) -> str:
        """The configuration as a JSON document."""
        return json.dumps(self.to_plain(), indent=2)


def _at_least(least: int, config: TrainConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not least <= value < math.inf:  # false for NaN, too
            raise ConfigError(f"{flag_of(name)} {value} must be {least} or more, and finite")


def _finite_above_0(config: TrainConfig, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise ConfigError(f"{flag_of(name)} {value} must be above 0, and finite")
