"""The words that options choose between, each list written once: for mypy, `--help` and the code.

A type that ends in Choice has "auto" in it; the one without stands for what is settled.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal

ScheduleName = Literal["gpipe", "1f1b", "eager-1f1b", "interleaved", "zero-bubble"]
"""An order of the passes of a bundle."""
ScheduleChoice = Literal["auto", ScheduleName]
SchemeName = Literal["local-master", "sharded", "flat"]
"""A way to sum gradients over the replicas of a stage."""
SchemeChoice = Literal["auto", SchemeName]
WITHOUT_EXCHANGE: tuple[SchemeName, ...] = ("flat",)
"""They have no leg between nodes, in which gradients could travel in a shorter form."""
Cutter = Literal["graph", "replay"]
"""A way to cut a model into stages."""
CutterChoice = Literal["auto", Cutter]
Share = Literal["equal", "measured"]
"""How bundles share out the micro-batches of a step."""
OptimizerName = Literal["sgd", "sgd-nesterov", "rmsprop", "adamw"]
LrSchedule = Literal["constant", "cosine", "step", "exponential", "one-cycle"]
LrBy = Literal["step", "epoch"]
"""When the learning rate changes."""
WarmupMethod = Literal["linear", "constant"]
OnNan = Literal["stop", "skip", "ignore"]
"""What becomes of a step whose loss is no finite number."""
Augment = Literal["imagenet", "none"]
AutoAugment = Literal["none", "ra", "ta-wide", "augmix", "imagenet", "cifar10", "svhn"]
"""What is done to a training image besides."""
Interpolation = Literal["bilinear", "bicubic", "nearest"]
Decode = Literal["fast", "exact"]
"""How images become pixels of the size that the model takes."""
OnOff = Literal["on", "off"]
Precision = Literal["float32", "bfloat16", "float16", "float64"]
TF32Choice = Literal["auto", "on", "off"]
"""Where float32 arithmetic of a GPU may round to TensorFloat-32; auto: where torch does."""
CompileMode = Literal[
    "off", "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
]
"""A mode of torch.compile."""
WITH_GRAPHS: tuple[CompileMode, ...] = ("reduce-overhead", "max-autotune")
"""They replay CUDA graphs, whose outputs lie where those of the last replay lay."""
BY_TIMING: tuple[CompileMode, ...] = ("max-autotune", "max-autotune-no-cudagraphs")
"""They take the kernel that was the fastest when they tried."""
MemoryFormat = Literal["contiguous", "channels_last"]
"""An order of the numbers of images and of convolutions' weights in memory."""
MemoryFormatChoice = Literal["auto", MemoryFormat]
ExchangeDtype = Literal["float32", "bfloat16", "int8", "int4"]
"""What float32 gradients become between nodes."""
ExchangeLoss = Literal["none", "ok"]
"""Whether a choice of what travels between nodes may lose something."""
BLOCK_NUMBERS: dict[ExchangeDtype, int] = {"int8": 128, "int4": 64}
"""Numbers that have one scale, of two bytes."""
EXCHANGE_SHARE: dict[ExchangeDtype, float] = {
    "float32": 1.0,
    "bfloat16": 1 / 2,
    "int8": 1 / 4 + 2 / 4 / BLOCK_NUMBERS["int8"],
    "int4": 1 / 8 + 2 / 4 / BLOCK_NUMBERS["int4"],
}
"""Bytes between nodes over those of float32."""
TransportChoice = Literal["auto", "nccl", "cpu", "ipc"]
DeviceKind = Literal["gpu", "cpu"]
DeviceChoice = Literal["auto", DeviceKind]


class Reading(Enum):
    """How weights are read from files."""

    NOTHING = "there are none"
    BY_TENSOR = "what a stage needs"
    """The files are mapped, and ranks of a node see the same pages."""
    WHOLE = "all of it"
    """Each rank has all of them in memory of its own, such as those of torch before 1.6."""
