"""The errors a user can act on, and the exit codes they end with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_CONFIG = 2
EXIT_NODE = 3
EXIT_RESUMABLE = 75

_MEANINGS = {
    EXIT_DONE: "done",
    EXIT_FAILED: "the run failed",
    EXIT_CONFIG: "an option, a file or a name is wrong",
    EXIT_NODE: "this machine is not fit",
    EXIT_RESUMABLE: (
        "stopped before its end, or its state is not on disk; the same command with "
        "--run-dir resumes it"
    ),
}


def meaning_of(exit_code: int) -> str:
    """The meaning of one of our exit codes, in words."""
    import signal  # `--help` ends by none

    number = exit_code - 128
    if number in set(signal.Signals):
        return f"ended at once by {signal.Signals(number).name}"
    return _MEANINGS.get(exit_code, "the run failed")


VERDICT_FINAL = 4
"""What a rank that ends with 1 tells its agent if another start would fail in the same way."""


class BundleError(Exception):
    """A failure that a message explains; anything else that escapes is our bug."""

    exit_code = EXIT_FAILED

    @property
    def verdict(self) -> int:
        """What the rank's agent is told: the exit code, or that no other start is worth it."""
        return self.exit_code


class ConfigError(BundleError):
    """The input can be fixed: an option, a file, a name."""

    exit_code = EXIT_CONFIG


class NodeError(BundleError):
    """The machine can be fixed: a device, a port, a disk, a version."""

    exit_code = EXIT_NODE


class DivergedError(BundleError):
    """A value of the training is no finite number; another attempt would end the same way."""

    @property
    def verdict(self) -> int:
        """See `VERDICT_FINAL`."""
        return VERDICT_FINAL


class CorruptionError(BundleError):
    """Replicas that have to be equal are not; the run goes back to what was verified.

    Args:
        text: for a reader.
        details: for the event log; None where another rank tells.
    """

    def __init__(self, text: str, details: Mapping[str, object] | None = None) -> None:
        super().__init__(text)
        self.details = details


class CheckpointError(BundleError):
    """A checkpoint cannot be used."""


def nearest(name: str, valid: Iterable[str], *, limit: int = 5) -> str:
    """A text with the valid names closest to `name`, or the first few if none is close."""
    import difflib  # `--help` has no wrong name

    names = list(valid)
    close = difflib.get_close_matches(name, names, n=limit, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(close)
    shown = ", ".join(names[:limit])
    more = f", ... ({len(names)} in all)" if len(names) > limit else ""
    return f"valid: {shown}{more}" if names else "there is no valid one"
