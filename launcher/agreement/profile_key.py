"""What a profile of a model holds for, in words; needs no torch."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from bundlerun.launcher.agreement.agreed import CODE, DATA, terms_of
from bundlerun.launcher.choices import DeviceKind
from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.options.declared import flag_of
from bundlerun.launcher.planning.model_costs import ProfileKey

DECIDING = (
    "recipe",
    "model",
    "num_classes",
    "freeze",
    "lora",
    "lora_targets",
    "image_size",
    "seq_len",
    "tokenizer",
    "synthetic_samples",
    "optimizer",
    "model_ema",
    "clip_norm",
    "compile",
    "memory_format",
    "tf32",
    "deterministic",
)
"""Options that decide what the pieces of a model are, and what they cost."""
_NVIDIA = Path("/proc/driver/nvidia/gpus")


def profile_key(
    config: TrainConfig, *, kind: DeviceKind, threads: int, is_estimate: bool = False
) -> ProfileKey:
    """The key of the profile that a configuration needs; takes some 20 ms.

    Args:
        config: of the run.
        kind: of the devices.
        threads: of a rank, which count on the CPU.
        is_estimate: whether nothing is timed: then it holds on any machine.
    """
    terms = terms_of(config)
    # Of the data its path, and what can be seen of it.
    deciding = [flag for name in DECIDING for flag in _flags(name)]
    words = [f"{flag} {terms[flag]}" for flag in deciding if terms.get(flag)]
    words += [f"{DATA} {config.data}"] + ([terms[DATA]] if terms.get(DATA, "") else [])
    return ProfileKey(
        model=", ".join(dict.fromkeys(words)),
        device="" if is_estimate else device_text(kind, threads),
        versions=f"bundlerun {terms[CODE]}, torch {_torch()}",
        precision=config.precision,
        cutter=config.cutter,
        is_estimate=is_estimate,
    )


def model_part(words: str) -> str:
    """What the `model` of a key says without the data."""
    return words.partition(f", {DATA} ")[0]


def _flags(name: str) -> Sequence[str]:
    flag = flag_of(name)
    return flag, f"content of {flag}"


def _torch() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return "not installed"


def device_text(kind: DeviceKind, threads: int) -> str:
    """The kind of device of this machine, such as "cpu, 1 thread, MODEL"."""
    if kind == "gpu":
        return f"gpu, {', '.join(_gpus()) or 'unknown'}"
    several = "" if threads == 1 else "s"
    return f"cpu, {threads} thread{several}, {_processor()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _gpus() -> list[str]:
    """Models of the NVIDIA GPUs, as the driver says; of other makers nothing."""
    found: set[str] = set()
    for file in _NVIDIA.glob("*/information"):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        found |= {line.partition(":")[2].strip() for line in lines if line.startswith("Model:")}
    return sorted(found)
