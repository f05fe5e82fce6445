"""Torch's switches for this process: speed, precision of float32, the same bits each time.

                     on a GPU        --tf32 / --no-tf32    --deterministic
    matrix products                  high / highest        one workspace of cuBLAS
    convolutions     try and keep    allowed / not         no trying, the same algorithms
    what else                                              refused where it has no such way

On the CPU, and without these options, everything stays as torch has it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import MutableMapping

import torch

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.device import accelerator
from bundlerun.workers.device.traits import Traits, traits_of

log = logging.getLogger(__name__)


def prepare(config: TrainConfig, environ: MutableMapping[str, str] = os.environ) -> None:
    """Sets what the libraries of a GPU read when they start; call it before they do."""
    if config.deterministic:
        # Source: cuBLAS's manual, "Results Reproducibility"; the user's own value counts.
        environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def set_switches(config: TrainConfig, device: torch.device, *, speaks: bool) -> None:
    """Sets the switches of this process as the options ask.

    Args:
        config: of the run.
        device: of this rank, started.
        speaks: whether this rank says what is to be told.

    Raises:
        ConfigError: the device does not do what is asked.
    """
    if accelerator.is_gpu(device):
        _check_gpu(config, traits_of(device), speaks=speaks)
        # Micro-batches have few sizes: trying all algorithms once for each is soon made up for.
        torch.backends.cudnn.benchmark = not config.deterministic
    else:
        config.check_kind("cpu")
    if config.tf32 != "auto":
        is_on = config.tf32 == "on"
        # The older of torch's two ways to say it, which all versions have and never mix.
        torch.set_float32_matmul_precision("high" if is_on else "highest")
        torch.backends.cudnn.allow_tf32 = is_on
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.deterministic = True


def _check_gpu(config: TrainConfig, traits: Traits, *, speaks: bool) -> None:
    if config.tf32 == "on" and not traits.has_tf32:
        raise ConfigError(
            f"--tf32 is not in {traits.name}, which has no TensorFloat-32; leave it out"
        )
    if config.precision == "bfloat16" and not traits.has_bfloat16 and speaks:
        log.warning(
            "%s has no bfloat16 of its own: --precision bfloat16 is emulated, and slow; use "
            "float16 or float32", traits.name,
        )  # fmt: skip
