"""An error that a message explains ends a user's program with that line, and its exit code."""

from __future__ import annotations

import os
import sys
from types import TracebackType

from bundlerun.launcher.errors import BundleError
from bundlerun.workers.rank.said_once import said_once


def tell_errors() -> None:
    """Makes Python tell an error of ours that nobody catches in one line; others as before.

    Under a launcher many ranks end at once, and a traceback of each would hide what is wrong.
    """
    before = sys.excepthook
    if getattr(before, "is_of_bundlerun", False):
        return

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, BundleError):
            before(kind, error, trace)
            return
        text = f"error: {error}"
        with said_once(text, os.environ) as is_first:
            if is_first:
                print(text, file=sys.stderr, flush=True)  # noqa: T201 (as Python does)
        # Python ends with this code, after what it does at each end.
        raise SystemExit(error.exit_code)

    tell.is_of_bundlerun = True  # type: ignore[attr-defined]
    sys.excepthook = tell
