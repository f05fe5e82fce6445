"""The process that follows a run for one tracker: python -m bundlerun.launcher.trackers RUN NAME.

It goes on while its standard input is open, which the rank that started it keeps so; then it tells
what is left and ends. What a tracker's library prints goes to a file.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.trackers.follower import Follower
from bundlerun.launcher.trackers.known import opener_of
from bundlerun.launcher.trackers.lock import TrackerLock

PERIOD_S = 1.0
"""Between two looks at the history."""
LONGEST_PAUSE_S = 60.0
"""After failures in a row."""
LONGEST_END_S = 30.0
"""For what is left once the rank has ended."""


def follow(
    paths: RunPaths,
    name: str,
    *,
    is_over: Callable[[float], bool],
    say: Callable[[str], None],
    limit_s: float = LONGEST_END_S,
    is_all: bool = False,
) -> bool:
    """Tells a tracker the history until it is over.

    Args:
        paths: of the run.
        name: of the tracker.
        is_over: waits so many seconds at most; whether nothing more will come.
        say: shows a line to the user.
        limit_s: for what is left then.
        is_all: see `Follower`.

    Returns:
        Whether the tracker has everything.
    """
    lock = TrackerLock(paths.tracker_lock(name))
    ends = 0.0
    pause = PERIOD_S
    follower: Follower | None = None
    has_warned = False
    while True:
        try:
            if follower is None and lock.taken():
                follower = Follower(paths, name, opener_of(name), is_all=is_all)
            is_idle = follower is None or not follower.step()
            if has_warned and follower is not None:
                say(f"tracker {name}: answers again")
            pause, has_warned = PERIOD_S, has_warned and follower is None
            if is_idle and ends and follower is not None:
                follower.close()
                return True
        except Exception as exc:
            logging.exception("tracker %s", name)
            if not has_warned:
                say(
                    f"tracker {name}: {type(exc).__name__}: {_first_line(exc)}; training goes on, "
                    f"it is tried again (see {paths.tracker_log(name)})"
                )
            has_warned, is_idle = True, True
            pause = min(2 * pause, LONGEST_PAUSE_S)
        if is_over(pause if is_idle else 0.0) and not ends:
            ends, pause = time.monotonic() + limit_s, PERIOD_S
        if ends and time.monotonic() > ends:
            return False


def _first_line(exc: Exception) -> str:
    return (str(exc).splitlines() or [""])[0][:200]


def main() -> int:
    """Follows until standard input is closed."""
    root, name = sys.argv[1:]
    paths = RunPaths(Path(root))
    # A request to stop is the rank's business, and a terminal sends it to all; the end of the
    # rank is what counts here.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(10)  # ranks come first where cores are few
    console = _with_prints_in(paths.tracker_log(name))
    logging.basicConfig(level=logging.WARNING)
    # Whatever hangs in a library: nothing of a run outlives it for long.
    threading.Thread(target=_end_late, daemon=True).start()

    def say(text: str) -> None:
        try:
            print(text, file=console, flush=True)
        except OSError:
            logging.warning("%s", text)

    return 0 if follow(paths, name, is_over=_is_closed, say=say) else 1


def _is_closed(wait_s: float) -> bool:
    if _closed.is_set():
        time.sleep(min(wait_s, 0.2))
        return True
    return _closed.wait(wait_s)


_closed = threading.Event()


def _end_late() -> None:
    """Waits for the rank's end; then sees to it that this process ends, too."""
    while True:
        select.select([0], [], [])
        if not os.read(0, 1024):
            break
    _closed.set()
    time.sleep(2 * LONGEST_END_S)
    os._exit(1)


def _with_prints_in(path: Path) -> TextIO:
    """Sends what libraries print to a file; the way to the user that there was."""
    console = os.fdopen(os.dup(2), "w")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    return console


if __name__ == "__main__":
    sys.exit(main())
