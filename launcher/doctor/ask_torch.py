"""`python -m bundlerun.launcher.doctor.ask_torch`: what torch finds, as JSON; never in our process.

An import that crashes, or a driver that hangs, ends that process only.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

from bundlerun.launcher.doctor.asked import AskedTorch

LIMIT_S = 60.0


class Question:
    """Asks at once and answers when it is asked for, so that other things are read meanwhile."""

    def __init__(self, words: list[str] | None = None) -> None:
        asked = words or [sys.executable, "-m", __name__]
        self._since = time.monotonic()
        self._process = subprocess.Popen(
            asked,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def answer(self, limit_s: float = LIMIT_S) -> AskedTorch:
        """What torch says, or why it says nothing.

        Args:
            limit_s: since the question, seconds.
        """
        left_s = max(0.1, limit_s - (time.monotonic() - self._since))
        try:
            out, err = self._process.communicate(timeout=left_s)
        except subprocess.TimeoutExpired:
            return AskedTorch(why_not=f"importing torch takes more than {limit_s:g} s")
        with suppress(ValueError, KeyError, TypeError):
            if self._process.returncode == 0:
                return AskedTorch.of_plain(json.loads(out.splitlines()[-1]))
        last = (err.strip().splitlines() or ["no reason given"])[-1]
        return AskedTorch(why_not=f"it ends with {self._process.returncode}: {last}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def main() -> None:
    """Prints the answer."""
    start = time.perf_counter()
    import torch
    import torchvision

    seconds = time.perf_counter() - start
    cuda = torch.cuda
    has_cuda = cuda.is_available()
    numbers = range(cuda.device_count() if has_cuda else 0)
    gpus = []
    for number in numbers:
        free, total = cuda.mem_get_info(number)
        capability = cuda.get_device_capability(number)
        name = cuda.get_device_name(number)
        gpus.append({"name": name, "capability": capability, "free": free, "total": total})
    apart = [(a, b) for a in numbers for b in numbers if a < b and not _reach(a, b)]
    is_nvidia = has_cuda and torch.version.hip is None
    answer = {
        "seconds": seconds,
        "gpus": gpus,
        "built_for": cuda.get_arch_list() if is_nvidia else [],
        "nccl": ".".join(map(str, cuda.nccl.version())) if is_nvidia else "",
        "has_nms": _has_nms(torchvision.__version__),
        "apart": apart,
    }
    print(json.dumps(answer))  # noqa: T201 (it is what the other process reads)


def _reach(a: int, b: int) -> bool:
    import torch

    return torch.cuda.can_device_access_peer(a, b) and torch.cuda.can_device_access_peer(b, a)


def _has_nms(version: str) -> bool:
    import torch

    try:
        return bool(version) and hasattr(torch.ops.torchvision, "nms")
    except (RuntimeError, AttributeError):
        return False


if __name__ == "__main__":
    main()
