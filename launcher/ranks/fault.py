"""Pure: what an exception of a rank says about another try."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import bundlerun

_OURS = Path(bundlerun.__file__).parent
_TALK = (str(_OURS / "workers"), str(_OURS / "launcher"), "/torch/distributed/")
"""Where a RuntimeError comes from a broken connection: gloo and NCCL raise no type of their own."""
_PASSING = frozenset({"DistError", "AcceleratorError"})
"""Types of torch, by name, as not every torch has them all."""
_LOST_PEER = frozenset({"DistNetworkError", "DistStoreError"})
"""Types of torch that a rank raises where another one has ended."""
_UNTYPED = frozenset({"RuntimeError", "DistBackendError"})
_MARKS = ("gloo", "ncclRemoteError", "Connection", "Broken pipe")
"""What torch's untyped errors say of a lost peer: only their texts tell them from others."""
_HOPELESS = (ImportError, SyntaxError, NameError, AttributeError, TypeError)
_NUM_FRAMES = 4


class PeerGoneError(RuntimeError):
    """A rank cannot go on, as another one has ended."""


class FaultKind(IntEnum):
    """What may become of another try.

    PASSING: a lost peer, a disk or a network that may come back. PROGRAM: it fails alike where it
    does the same. HOPELESS: so does it before a first step.
    """

    NONE = 0
    PASSING = 1
    PROGRAM = 2
    HOPELESS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a rank failed; `place` is the same where the same goes wrong at the same step."""

    kind: FaultKind
    place: int = 0


def fault_of(error: BaseException, step: int) -> Fault:
    """Sorts what a rank raised.

    Args:
        step: finished steps of the run when it did.
    """
    frames = traceback.extract_tb(error.__traceback__)
    return Fault(_kind(error, frames), _place(error, frames, step))


def is_follower(error: BaseException) -> bool:
    """Whether an error only follows from the end of another rank."""
    return any(map(_is_lost_peer, _with_causes(error)))


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, then what it came of, as a traceback shows them."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _is_lost_peer(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, PeerGoneError)):
        return True
    if {each.__name__ for each in type(error).__mro__} & _LOST_PEER:
        return True
    return type(error).__name__ in _UNTYPED and any(mark in str(error) for mark in _MARKS)


def _kind(error: BaseException, frames: Sequence[traceback.FrameSummary]) -> FaultKind:
    names = {each.__name__ for each in type(error).__mro__}
    if isinstance(error, (OSError, PeerGoneError)) or names & _PASSING:
        return FaultKind.PASSING
    # Broken connections raise plain RuntimeErrors: only the file they come from tells.
    where = frames[-1].filename if frames else ""
    if type(error) is RuntimeError and any(part in where for part in _TALK):
        return FaultKind.PASSING
    return FaultKind.HOPELESS if isinstance(error, _HOPELESS) else FaultKind.PROGRAM


def _place(error: BaseException, frames: Sequence[traceback.FrameSummary], step: int) -> int:
    """63 bits, the same in every process."""
    spots = [f"{frame.filename}:{frame.lineno}" for frame in frames[-_NUM_FRAMES:]]
    text = "\n".join([type(error).__qualname__, str(step), *spots])
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    # One bit less, as the words of the board are signed.
    return int.from_bytes(digest) >> 1
