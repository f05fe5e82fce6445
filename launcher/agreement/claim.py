"""Whose a run folder is: one run's at a time, however its processes were started.

    rendezvous/claims/000001.over    a run that has ended
                      000002.json    a run that holds the folder: who, where, since when

A claim is made in one go and under a number of its own, so that two that come at once make the
same one, and one of them fails. Its holder touches it all the time. A holder of this machine is
looked up by its process, whose death frees the folder at once; one of another machine by whether
its claim is still touched, as seen from here. Ages are told by the file system, which dates a file
that is touched now and the older one: nobody compares the clocks of two machines.

The nodes of one job share a claim. Where its holder is gone, the next of them makes a new one.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from bundlerun.launcher.agreement.continuation import keep_terms
from bundlerun.launcher.errors import EXIT_CONFIG, ConfigError, NodeError
from bundlerun.launcher.meeting.default_folder import point_latest
from bundlerun.launcher.run_folder.files import create_text, is_absent, write_text
from bundlerun.launcher.run_folder.holder import TORCHRUN, Holder
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.stop_request import forget_request

CLAIM_VARIABLE = "BUNDLERUN_CLAIMED"
"""Tells ranks that their agent holds the run folder, and for which job."""
BEAT_S = 2.0
TAKE_OVER_S = 6.0
"""Silence of a holder after which another node of its job makes a new claim."""
WATCH_S = 15.0
"""Silence of a holder on another machine after which another job takes the folder; longer."""
TORCHRUN_WATCH_S = 90.0
"""The same for torchrun, whose ranks hold the folder: for 30 s and more there may be none."""
_MOST_TRIES = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FILE = re.compile(r"(\d{6,})\.(json|over)")
Say = Callable[[str], None]


def is_older(written_at: float, *, now: float, than_s: float) -> bool:
    """Whether a file is older than a process of that age; in doubt, by a second, it is not.

    Both times are the file system's.
    """
    return now - written_at > than_s + 1.0


@dataclass(frozen=True, slots=True)
class _Found:
    """A claim in the folder; without a holder where it has ended, or cannot be read."""

    path: Path
    holder: Holder | None

    @property
    def number(self) -> int:
        return int(self.path.stem)

    @property
    def is_over(self) -> bool:
        return self.path.suffix == ".over"

    @property
    def who(self) -> str:
        return str(self.holder or f"whoever wrote {self.path.name}, in a form unknown here")

    @property
    def watch_s(self) -> float:
        """Silence after which nobody holds it, for one of another machine."""
        is_torchruns = self.holder is not None and self.holder.how == TORCHRUN
        return TORCHRUN_WATCH_S if is_torchruns else WATCH_S

    @property
    def touched_at(self) -> int:
        """When, by the file system's clock, nanoseconds. 0: gone. -1: it cannot be told."""
        try:
            with self.path.open("rb") as file:  # a network file system asks its server again
                return os.fstat(file.fileno()).st_mtime_ns
        except FileNotFoundError:
            return 0
        except OSError:
            return -1


def _found(folder: Path) -> Iterator[_Found]:
    """All claims, newest first."""
    names = [p for p in folder.iterdir() if _FILE.fullmatch(p.name)] if folder.is_dir() else []
    for path in sorted(names, key=lambda p: int(p.stem), reverse=True):
        holder = None
        if path.suffix == ".json":
            try:
                holder = Holder(**json.loads(path.read_text(encoding="utf-8")))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError):  # of another version, or away for a moment
                holder = None
        yield _Found(path, holder)


def holder_now(paths: RunPaths) -> str:
    """Who has the run folder, for people; empty where it is free, as far as one can see."""
    held = (found.who for found in _found(paths.claims) if _is_held(found, paths.claims))
    return next(held, "")


def gone_holder(paths: RunPaths) -> str:
    """Who had the run folder and is gone without having ended the run, for people; else nothing."""
    newest = next(_found(paths.claims), None)
    if newest is None or newest.holder is None or newest.touched_at <= 0:
        return ""
    holder, silence_s = newest.holder, _silence_s(newest)
    # Where other nodes of its job are left, one of them takes over.
    here_s = 0.0 if holder.is_alone else TAKE_OVER_S + BEAT_S
    limit_s = here_s if holder.is_here else newest.watch_s
    if silence_s < limit_s or (holder.is_here and holder.lives_here):
        return ""
    return f"killed or lost: {holder}; last sign of life {silence_s:.0f} s ago"


def _silence_s(found: _Found) -> float:
    try:
        now = _now(found.path.parent)
    except OSError:  # another user's folder
        now = time.time()
    return max(0.0, now - found.touched_at / 1e9)


def _is_held(found: _Found, folder: Path) -> bool:
    """Whether a claim's process lives; elsewhere, whether it was touched a short time ago.

    In doubt it is.
    """
    if found.is_over:
        return False
    if found.holder is not None and found.holder.is_here:
        return found.holder.lives_here
    with suppress(OSError):
        return _now(folder) - found.touched_at / 1e9 < found.watch_s
    return True


def _now(folder: Path) -> float:
    """By the file system's clock."""
    os.utime(folder)
    return folder.stat().st_mtime


class Claim:
    """A run folder that this process may use; the claim itself may be another node's.

    Args:
        paths: of the run folder.
        me: who this is.
        say: tells the user.
    """

    def __init__(self, paths: RunPaths, me: Holder, say: Say) -> None:
        self._paths = paths
        self._me = me
        self._say = say
        self._own: Path | None = None
        self._is_new = False
        self._is_begun = False
        self._end_before = ""
        self._has_told_full = False
        self._silent: dict[Path, int] = {}
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def job(self) -> str:
        """Whose it is: the same on all nodes."""
        return self._me.job

    @property
    def is_own(self) -> bool:
        """Whether this process has made it, and not another node of its job."""
        return self._own is not None

    def check(self, *, watch_s: float | None = None) -> list[_Found]:
        """Looks, and writes nothing; returns the claims that are there, none of which binds us.

        Args:
            watch_s: how long a claim of another machine is watched, seconds; by default by how
                its run was started.

        Raises:
            ConfigError: another run has the folder.
        """
        seen = list(_found(self._paths.claims))
        for found in seen:
            if self._binds(found, found.watch_s if watch_s is None else watch_s):
                raise ConfigError(
                    f"run folder {str(self._paths.root)!r} is in use by {found.who}; give "
                    f"another --run-dir, or end that run first: bundlerun drain {self._paths.root}"
                )
        return seen

    def _binds(self, found: _Found, watch_s: float) -> bool:
        holder = found.holder
        if found.is_over or self._silent.get(found.path) == found.touched_at:
            return False
        if holder is not None:
            if holder.job == self._me.job or holder.is_same_process(self._me):
                return False
            if holder.is_here:
                return holder.lives_here
        self._say(
            f"run folder {str(self._paths.root)!r} was claimed by {found.who}; looking for up to "
            f"{watch_s:g} s whether it still is"
        )
        touched_at = found.touched_at
        if _is_touched(found, touched_at, watch_s):
            return True
        self._silent[found.path] = touched_at  # it need not be watched again, to take the folder
        return False

    def take(self, *, watch_s: float | None = None, begins_run: bool = True) -> Self:
        """Makes a claim, or joins that of this process's own job.

        Who makes it begins a start of the run, early: what an earlier one has left of its end
        goes, and requests to stop of that time. A request from now on is meant for this start;
        the nodes that come later leave it alone. The end comes back where nothing comes of this
        start: where its claim is released before it was ever to be kept.

        Args:
            watch_s: see `check`.
            begins_run: whether this is a start of a run; else what one has left there stays.

        Raises:
            ConfigError: another run has the folder.
            NodeError: it cannot be written.
        """
        for _ in range(_MOST_TRIES):
            if self._is_taken(self.check(watch_s=watch_s)):
                break
            time.sleep(random.uniform(0.01, 0.1))  # another came at once: one of the two is first
        else:
            raise NodeError(f"cannot claim {str(self._paths.root)!r}: it changes all the time")
        if self._is_begun and begins_run:
            with suppress(OSError):  # a full disk: said by what needs it
                self._clear()
        return self

    def _clear(self) -> None:
        with suppress(FileNotFoundError):
            self._end_before = self._paths.outcome.read_text(encoding="utf-8", errors="replace")
            self._paths.outcome.unlink()
        # A request that is older than this process was meant for an earlier start.
        written_at = self._paths.drain.stat().st_mtime
        if is_older(written_at, now=_now(self._paths.claims), than_s=self._me.age_s):
            forget_request(self._paths)

    def keep(self, terms: Mapping[str, str]) -> Self:
        """Touches the claim until it is released, and keeps what this start is made of.

        Args:
            terms: see `bundlerun.launcher.agreement.agreed`.
        """
        if self._is_begun:
            with suppress(OSError):  # a full disk
                keep_terms(self._paths, terms)
            point_latest(self._paths.root)
        return self.hold()

    def hold(self) -> Self:
        """Touches the claim until it is released, and writes nothing else."""
        self._thread = threading.Thread(target=self._keep, name="bundlerun-claim", daemon=True)
        self._thread.start()
        return self

    def _make_folder(self) -> None:
        self._is_new = self._is_new or not self._paths.root.exists()
        try:
            self._paths.claims.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            if exc.errno not in _FULL:
                raise self._unwritable(exc) from exc

    def _unwritable(self, exc: OSError) -> NodeError:
        root = str(self._paths.root)
        return NodeError(f"cannot write to --run-dir {root!r}: {exc.strerror}; give another")

    def _is_taken(self, seen: list[_Found]) -> bool:
        for found in seen:
            holder = found.holder
            if holder is None or holder.job != self._me.job:
                continue
            if holder.is_same_process(self._me):
                self._own, self._is_begun = found.path, True
                return True
            if _is_held(found, self._paths.claims):
                return True  # another node's
        self._is_begun = self._is_made(seen)
        return self._is_begun

    def _is_made(self, seen: list[_Found]) -> bool:
        """Makes a claim; false where that failed as others came at the same time."""
        self._make_folder()
        folder = self._paths.claims
        number = max((found.number for found in seen), default=0) + 1
        path = folder / f"{number:06d}.json"
        try:
            if not create_text(path, json.dumps(asdict(self._me))):
                return False
        except FileNotFoundError:  # another has taken the folder away again
            return False
        except OSError as exc:
            if exc.errno in _FULL:
                if not self._has_told_full:
                    self._say(f"cannot claim {str(self._paths.root)!r}: {exc.strerror}; going on")
                self._has_told_full = True
                return True
            raise self._unwritable(exc) from exc
        # Others may have claimed another number meanwhile: who finds one withdraws (I15).
        known = {found.path for found in seen} | {path}
        if any(f.path not in known and not f.is_over for f in _found(folder)):
            path.unlink(missing_ok=True)
            return False
        # Older claims go only now that ours is there.
        self._own = path
        for found in seen:
            found.path.unlink(missing_ok=True)
        return True

    def _keep(self) -> None:
        touched_at, since = 0, time.monotonic()
        while not self._is_over.wait(BEAT_S):
            with suppress(OSError, NodeError):  # a folder that is away for a while
                if self._own is not None:
                    self._touch(self._own)
                    continue
                # Another node of this job holds it: take over once it is silent.
                seen = list(_found(self._paths.claims))
                now = max((found.touched_at for found in seen if not found.is_over), default=0)
                if now != touched_at:
                    touched_at, since = now, time.monotonic()
                elif time.monotonic() - since > TAKE_OVER_S or not touched_at:
                    self._is_made(seen)

    def _touch(self, own: Path) -> None:
        try:
            os.utime(own)
        except FileNotFoundError:
            # This process was frozen for so long that it was taken for dead.
            other = next((f for f in _found(self._paths.claims) if self._is_others(f)), None)
            if other is None:
                self._own = None  # another node's of this job, or nobody's any more
            elif not self._is_over.is_set():
                self._say(
                    f"run folder {str(self._paths.root)!r} has been taken over by {other.who}, "
                    "which this run did not hinder in time; it ends"
                )
                os._exit(EXIT_CONFIG)

    def _is_others(self, found: _Found) -> bool:
        """Whether a claim is, as far as one can see, another job's."""
        holder = found.holder
        return holder is not None and holder.job != self._me.job

    def release(self) -> None:
        """Frees the folder for the next run; where no start came about, a new folder goes."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)  # a shared folder may not answer
        elif self._end_before and is_absent(self._paths.outcome):
            with suppress(OSError):  # a full disk
                write_text(self._paths.outcome, self._end_before)
        if self._own is not None:
            with suppress(OSError):
                if self._is_new and self._thread is None:
                    self._leave_nothing(self._own)
                else:
                    # Renamed, not removed: numbers must go on ascending (I15).
                    self._own.rename(self._own.with_suffix(".over"))

    def _leave_nothing(self, own: Path) -> None:
        own.unlink()
        for folder in (self._paths.claims, self._paths.claims.parent, self._paths.root):
            folder.rmdir()  # fails where another node has put something there

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _is_touched(found: _Found, first: int, limit_s: float) -> bool:
    """Whether a claim is touched within a time, by this machine's clock."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S / 8, limit_s))
        now = found.touched_at
        if now >= 0 and now != first:
            return now != 0
    return False
