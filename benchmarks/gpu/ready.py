"""What is here: the GPU, versions, missing modules. Reads the libraries from the disk once.

On a fresh machine that alone may take half a minute, which no case should pay for.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.listed import CASES
from benchmarks.gpu.runner import EXIT_NO_GPU


def run(bench: Bench) -> int:
    """Says what is here; the exit code tells whether a GPU is."""
    if bench.is_gpu and not torch.cuda.is_available():
        return EXIT_NO_GPU
    bench.said.note("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}")
    needed = sorted({name for case in CASES for name in case.needs})
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    bench.said.note("missing modules", ", ".join(missing) or "none")
    if bench.is_gpu:
        _use(bench)
    return 0


def _use(bench: Bench) -> None:
    properties = torch.cuda.get_device_properties(bench.device)
    memory_gib = properties.total_memory / 2**30
    bench.said.note("GPU", f"{torch.cuda.get_device_name(bench.device)}, {memory_gib:.0f} GiB")
    if importlib.util.find_spec("torchvision") is not None:
        importlib.import_module("torchvision")
    # The largest libraries, so that later ones find them in memory.
    images = torch.randn(8, 8, 32, 32, device=bench.device)
    weight = torch.randn(8, 8, 3, 3, device=bench.device)
    torch.nn.functional.conv2d(images, weight).sum().item()
    (weight.view(24, 24) @ weight.view(24, 24)).sum().item()
