"""What torch finds, as JSON, in a process of its own.

    python -m bundlerun.launcher.doctor.read.ask_torch

An import that crashes, or a driver that hangs, ends that process only.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from bundlerun.launcher.doctor.asked import AskedTorch

LIMIT_S = 150.0


class NoAnswer(Exception):
    """Why there is none, in a line."""


class Question:
    """Asks at once and answers when it is asked for, so that other things are read meanwhile.

    Args:
        module: is started; prints what `answer_now` gives as its first line, and may read more.
    """

    def __init__(self, module: str = __name__, words: Sequence[str] = ()) -> None:
        asked = list(words) or [sys.executable, "-m", module]
        self._since = time.monotonic()
        self._rest = b""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end)
        self._process = subprocess.Popen(
            asked, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    def answer(self, limit_s: float = LIMIT_S) -> AskedTorch:
        """What torch says, or why it says nothing.

        Args:
            limit_s: since the question, seconds.
        """
        try:
            plain = self._line(self._since + limit_s)
            return AskedTorch.of_plain(plain, time.monotonic() - self._since)
        except NoAnswer as exc:
            return AskedTorch(why_not=str(exc))
        except (KeyError, TypeError, ValueError) as exc:
            return AskedTorch(why_not=f"it answers what nobody understands: {exc}")

    def more(self, words: object, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Sends a line to the same process, and gives its next one.

        Raises:
            NoAnswer: it has ended, or takes longer.
        """
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.write(json.dumps(words).encode() + b"\n")
            self._process.stdin.flush()
        return self._line(time.monotonic() + limit_s)

    def _line(self, deadline: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._rest:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise NoAnswer(f"no answer within {deadline - self._since:.0f} s")
            data = os.read(descriptor, 65536)
            if not data:
                raise NoAnswer(self._why_ended())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            found = json.loads(line)
        except ValueError:
            found = {}  # something that a library prints
        return found if isinstance(found, dict) and found else self._line(deadline)

    def _why_ended(self) -> str:
        code = self._process.wait(1.0) if self._process.stdout else 0
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"it ends with {code}: {(lines or ['no reason given'])[-1]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for file in (self._process.stdin, self._process.stdout, self._errors):
            with suppress(OSError):
                if file is not None:
                    file.close()


def answer_now() -> dict[str, Any]:
    """What torch finds in this process, which it is loaded into."""
    import torch
    import torchvision

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
    return {
        "gpus": gpus,
        "built_for": cuda.get_arch_list() if is_nvidia else [],
        "nccl": ".".join(map(str, cuda.nccl.version())) if is_nvidia else "",
        "has_nms": _has_nms(torchvision.__version__),
        "apart": apart,
    }


def print_answer() -> None:
    """Prints it as a line, at once."""
    print(json.dumps(answer_now()), flush=True)  # noqa: T201 (the other process reads it)


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
    print_answer()
