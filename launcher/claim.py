"""Whose a run folder is: one run's at a time, however its processes were started.

    rendezvous/claims/000001.over    a run that has ended
                      000002.json    a run that holds the folder: who, where, since when

A claim is made in one go and under a number of its own, so that two that come at once make the
same one, and one of them fails. Its holder touches it all the time. A holder of this machine is
looked up by its process, whose death frees the folder at once; one of another machine by whether
its claim is still touched, as seen from here: nobody compares the clocks of two machines.

The nodes of one job share a claim. Where its holder is gone, the next of them makes a new one.
"""

from __future__ import annotations

import errno
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from launcher.continuation import keep_terms
from launcher.errors import EXIT_CONFIG, ConfigError, NodeError
from launcher.paths import RunPaths
from launcher.run_folder import point_latest
from launcher.stop_request import forget_request

CLAIM_VARIABLE = "BUNDLERUN_CLAIMED"
"""Tells ranks that their agent holds the run folder."""
BEAT_S = 2.0
TAKE_OVER_S = 6.0
"""Silence of a holder after which another node of its job makes a new claim."""
WATCH_S = 15.0
"""Silence of a holder on another machine after which another job takes the folder; longer."""
_MOST_TRIES = 100
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FILE = re.compile(r"(\d{6,})\.(json|over)")
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who claims a run folder.

    job: the same on all nodes of a job, and no other job's. how: what was started. machine: this
    start of it, and the space of its process ids. started: of the process, clock ticks since then.
    since: for people, by that machine's clock.
    """

    job: str
    how: str
    node: str
    machine: str
    pid: int
    started: int
    since: str

    @classmethod
    def of_process(cls, job: str, how: str, *, node: str = "", pid: int | None = None) -> Holder:
        """A process of this machine, which exists as long as the run; by default this one."""
        pid = os.getpid() if pid is None else pid
        return cls(
            job=job,
            how=how,
            node=node or socket.gethostname(),
            machine=_machine(),
            pid=pid,
            started=_started(pid) or 0,
            since=datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        )

    @property
    def is_here(self) -> bool:
        """Whether its process can be seen from here."""
        return self.machine == _machine()

    @property
    def lives_here(self) -> bool:
        """Whether its process is there, for one that can be seen."""
        return _started(self.pid) == self.started

    def is_same_process(self, other: Holder) -> bool:
        """Whether both are one process, whatever its job is called now."""
        return self._process == other._process

    @property
    def _process(self) -> tuple[str, int, int]:
        return self.machine, self.pid, self.started

    @property
    def age_s(self) -> float:
        """Seconds since its process began; of this machine."""
        ticks = os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / ticks

    def __str__(self) -> str:
        return f"process {self.pid} on node {self.node} ({self.how}, since {self.since})"


def is_older(written_at: float, *, now: float, than_s: float) -> bool:
    """Whether a file is older than a process of that age; in doubt, by a second, it is not.

    Both times are of the wall clock, the file's perhaps of a file server's: that far off, a
    request of an earlier start is obeyed, or one of the first seconds has to be made again.
    """
    return now - written_at > than_s + 1.0


def process_tag(pid: int) -> str:
    """A short text that no other process of this machine has, while it is up."""
    return f"{_started(pid) or 0}-{pid}"


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"


def _started(pid: int) -> int | None:
    """When a process began, clock ticks since the start of the machine; None: it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = words.rpartition(")")[2].split()
    return None if state in "ZX" else int(rest[18])


@dataclass(frozen=True, slots=True)
class _Found:
    """A claim in the folder."""

    path: Path
    holder: Holder | None

    @property
    def number(self) -> int:
        return int(self.path.stem)

    @property
    def is_over(self) -> bool:
        return self.holder is None

    @property
    def touched_at(self) -> int:
        """When, by the file server's clock; only to see whether it changes. 0: gone."""
        with suppress(OSError):
            return self.path.stat().st_mtime_ns
        return 0


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
            except (OSError, ValueError, TypeError):  # of another version of bundlerun
                holder = None
        yield _Found(path, holder)


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
        self._is_over = threading.Event()
        self._thread: threading.Thread | None = None

    def check(self, *, watch_s: float = WATCH_S) -> list[_Found]:
        """Looks, and writes nothing; returns the claims that are there, none of which binds us.

        Args:
            watch_s: how long a claim of another machine is watched, seconds.

        Raises:
            ConfigError: another run has the folder.
        """
        seen = list(_found(self._paths.claims))
        for found in seen:
            if self._binds(found, watch_s):
                raise ConfigError(
                    f"run folder {str(self._paths.root)!r} is in use by {found.holder}; give "
                    f"another --run-dir, or end that run first: bundlerun drain {self._paths.root}"
                )
        return seen

    def _binds(self, found: _Found, watch_s: float) -> bool:
        holder = found.holder
        if holder is None or holder.job == self._me.job or holder.is_same_process(self._me):
            return False
        if holder.is_here:
            return holder.lives_here
        self._say(
            f"run folder {str(self._paths.root)!r} was claimed by {holder}; looking for up to "
            f"{watch_s:g} s whether it still is"
        )
        return _is_touched(found, watch_s)

    def clear(self) -> None:
        """Takes away what an earlier start has left of its end, and requests to stop of that time.

        By whoever begins a start, early: a request from now on is meant for it. The nodes that
        come later leave it alone.
        """
        if any(self._is_of_job(found.holder) for found in _found(self._paths.claims)):
            return
        with suppress(OSError):  # a folder that is not there yet, or a full disk
            self._paths.outcome.unlink(missing_ok=True)
            written_at = self._paths.drain.stat().st_mtime
            if is_older(written_at, now=time.time(), than_s=self._me.age_s):
                forget_request(self._paths)

    def _is_of_job(self, holder: Holder | None) -> bool:
        if holder is None or holder.job != self._me.job:
            return False
        return not holder.is_here or holder.lives_here

    def take(self, terms: Mapping[str, str], *, watch_s: float = WATCH_S) -> Self:
        """Makes a claim, or joins that of this process's own job, and keeps it until released.

        Who makes it begins a start of the run: what an earlier one has left of its end goes, and
        the folder keeps what this one is made of.

        Args:
            terms: see `launcher.agreement`.
            watch_s: how long a claim of another machine is watched, seconds.

        Raises:
            ConfigError: another run has the folder.
            NodeError: it cannot be written.
        """
        self._make_folder()
        for _ in range(_MOST_TRIES):
            if self._is_taken(self.check(watch_s=watch_s)):
                break
            time.sleep(random.uniform(0.01, 0.1))  # another came at once: one of the two is first
        else:
            raise NodeError(f"cannot claim {str(self._paths.root)!r}: it changes all the time")
        if self._own is not None:
            with suppress(OSError):  # a full disk: said by what needs it
                self._paths.outcome.unlink(missing_ok=True)
                keep_terms(self._paths, terms)
            point_latest(self._paths.root)
        self._thread = threading.Thread(target=self._keep, name="bundlerun-claim", daemon=True)
        self._thread.start()
        return self

    def _make_folder(self) -> None:
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
                self._own = found.path
                return True
            if not holder.is_here or holder.lives_here:
                return True  # another node's
        return self._is_made(seen)

    def _is_made(self, seen: list[_Found]) -> bool:
        """Makes a claim; false where that failed as others came at the same time."""
        folder = self._paths.claims
        number = max((found.number for found in seen), default=0) + 1
        path = folder / f"{number:06d}.json"
        beside = folder / f".claim-{os.getpid()}-{random.getrandbits(32):08x}"
        try:
            beside.write_text(json.dumps(asdict(self._me)), encoding="utf-8")
            os.link(beside, path)
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as exc:
            if exc.errno in _FULL:
                self._say(f"cannot claim {str(self._paths.root)!r}: {exc.strerror}; going on")
                return True
            raise self._unwritable(exc) from exc
        finally:
            beside.unlink(missing_ok=True)
        known = {found.path for found in seen} | {path}
        if any(f.path not in known and not f.is_over for f in _found(folder)):
            path.unlink(missing_ok=True)
            return False
        self._own = path
        for found in seen:
            found.path.unlink(missing_ok=True)
        return True

    # ---------------------------------------------------------------- while the run goes on

    def _keep(self) -> None:
        touched_at, since = 0, time.monotonic()
        while not self._is_over.wait(BEAT_S):
            with suppress(OSError):  # a folder that is away for a while: others see to that
                if self._own is not None:
                    self._touch(self._own)
                    continue
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
            other = next((f.holder for f in _found(self._paths.claims) if f.holder), None)
            if other is not None and other.job != self._me.job and not self._is_over.is_set():
                # This process was frozen for so long that it was taken for dead.
                self._say(
                    f"run folder {str(self._paths.root)!r} has been taken over by {other}, which "
                    "this run did not hinder in time; it ends"
                )
                os._exit(EXIT_CONFIG)
            raise

    def release(self) -> None:
        """Frees the folder for the next run."""
        self._is_over.set()
        if self._thread is not None:
            self._thread.join(BEAT_S)  # a shared folder may not answer
        if self._own is not None:
            with suppress(OSError):
                self._own.rename(self._own.with_suffix(".over"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def _is_touched(found: _Found, limit_s: float) -> bool:
    """Whether a claim is touched within a time, by this machine's clock."""
    first, deadline = found.touched_at, time.monotonic() + limit_s
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S / 8, limit_s))
        now = found.touched_at
        if now != first:
            return now != 0
    return False
