"""The history of a run: JSON Lines, which trackers follow.

{"time": 1760000000.0, "kind": "step", "step": 10, "loss": 1.93, "seconds": {"forward": 0.2}}
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import BinaryIO, Literal

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.files import is_absent
from bundlerun.launcher.run_folder.history import Row, row_of
from bundlerun.launcher.run_folder.paths import RunPaths

Kind = Literal["start", "step", "epoch", "eval", "why", "forecast", "restart", "stop", "end"]

_MOST_LATE = 10_000
"""Lines that are kept for a disk that is full: some megabytes."""

log = logging.getLogger(__name__)


class MetricsWriter:
    """Appends to the history of a run; one rank has it. A full disk does not end the run.

    Lines that cannot be written wait for room, the newest `_MOST_LATE`.

    Args:
        paths: of the run.
        clock: seconds since the epoch.

    Raises:
        ConfigError: the run folder cannot be written.
    """

    def __init__(
        self,
        paths: RunPaths,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._paths = paths
        self._path = paths.metrics
        self._clock = clock
        self._warned = False
        self._late: deque[bytes] = deque(maxlen=_MOST_LATE)
        self._held: bytes | None = None
        try:
            self._file, self._beside = _open(paths)
            self._torn = _ends_torn(paths)
        except OSError as exc:
            raise ConfigError(
                f"cannot write --run-dir {str(paths.root)!r}: {exc.strerror}; give a folder that "
                "you may write"
            ) from exc

    @property
    def is_gone(self) -> bool:
        """Whether the file, or its folder, has been deleted or renamed under the run."""
        return is_absent(self._path)

    def make_again(self) -> None:
        """Writes the history, which the open file still has, to its old path again.

        Raises:
            OSError: it cannot be.
        """
        # A deleted file keeps its content as long as it is open; only its name is gone. Opening it
        # through /proc reads it from the start, as the handle itself is for appending.
        file, beside = _open(self._paths)
        lost, self._file = self._file, file
        os.close(self._beside)
        self._beside = beside
        with lost, Path(f"/proc/self/fd/{lost.fileno()}").open("rb") as old:
            shutil.copyfileobj(old, file)
        if self._held is not None:
            os.pwrite(beside, self._held, 0)

    def write(self, kind: Kind, **values: object) -> None:
        """Appends one line that another process can read at once.

        Args:
            kind: what the line is about.
            values: numbers, texts, scalar tensors, and mappings or lists of them. Where there is a
                `step`, trackers have the numbers of steps, epochs and validations as `kind/name`.
        """
        self._put(self._line(kind, values))

    def hold(self, kind: Kind, **values: object) -> None:
        """Keeps one line back until `release`: a failure may still undo what it is about.

        A copy is in a second file; the next start uses it if the step was not undone.
        """
        line = self._line(kind, values)
        self._held = line
        try:
            # Over the line before, which is in the history by now; then cut to its own length.
            os.pwrite(self._beside, line, 0)
            os.ftruncate(self._beside, len(line))
        except OSError as exc:
            self._warn_once(exc)

    def release(self) -> None:
        """Appends the line that is kept back, if one is."""
        if self._held is not None:
            self._put(self._held)
            self._held = None

    def _line(self, kind: Kind, values: Mapping[str, object]) -> bytes:
        line = {"time": self._clock(), "kind": kind} | {n: plain(v) for n, v in values.items()}
        return (json.dumps(line, allow_nan=False) + "\n").encode()

    def _put(self, line: bytes) -> None:
        # Through the queue, even if there is room: lines that wait come first.
        self._late.append(line)
        try:
            self._write_late()
        except OSError as exc:
            self._warn_once(exc)

    def _write_late(self) -> None:
        while self._late:
            # Taken out only once it is written, so that a full disk loses no line.
            self._append(self._late[0])
            self._late.popleft()

    def forget(
        self, step: int, *, with_ends: bool, last: Mapping[str, object] | None = None
    ) -> int:
        """Takes out what the history says of steps that are to be done again; how many lines.

        A line that was kept back comes in where it is about a step that stays, and so does `last`:
        who writes may have died between finishing a step and writing.

        Args:
            step: finished steps that stay so.
            with_ends: the end of an epoch right after them is done again, too.
            last: what the state says of its last step; empty where it says nothing.
        """
        try:
            with self._path.open("r+b") as file:
                # A long history is not read whole: only its end can be about steps to do again.
                cut, lines = _tail(file, step)
                file.seek(cut)
                kept = [line for line in lines if not _is_after(line, step, with_ends)]
                num_out = len(lines) - len(kept)
                # Its first line only: a crash before the cut leaves the rest of an older one.
                held = os.pread(self._beside, _BLOCK_BYTES, 0).partition(b"\n")[0] + b"\n"
                # The line kept back comes first, so it wins: it has the time of the step.
                candidates = [held, self._line("step", last)] if last else [held]
                kept += _missing(kept, candidates, step)
                file.write(b"".join(kept))
                file.truncate()
            return num_out
        except OSError as exc:
            self._warn_once(exc)
            return 0

    def _append(self, line: bytes) -> None:
        """A line that a full disk cut short must not swallow the next one as well."""
        # A newline ends what was cut short; readers skip that line alone.
        whole = b"\n" + line if self._torn else line
        self._torn = True
        # The file is unbuffered: one write may take only part of the line.
        while whole:
            whole = whole[self._file.write(whole) :]
        self._torn = False

    def _warn_once(self, exc: OSError) -> None:
        if not self._warned:
            log.warning(
                "cannot write %r: %s; training goes on, the newest %d lines wait for room",
                str(self._path),
                exc.strerror,
                _MOST_LATE,
            )
        self._warned = True

    def close(self) -> None:
        """Ends the files."""
        try:
            self._write_late()
        except OSError as exc:
            log.warning(
                "the last %d lines of %r are lost: %s",
                len(self._late), str(self._path), exc.strerror,
            )  # fmt: skip
        self._file.close()
        os.close(self._beside)

    def __enter__(self) -> MetricsWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(paths: RunPaths) -> tuple[FileIO, int]:
    """The history, and the file for the line that is kept back."""
    paths.root.mkdir(parents=True, exist_ok=True)
    file = paths.metrics.open("ab", buffering=0)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    return file, os.open(paths.held_metrics, flags, 0o644)


def plain(value: object) -> object:
    """`value` as JSON can say it; NaN and infinities become the texts "nan", "inf", "-inf"."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    # Tensors of one number, and numpy's scalars, without importing either.
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


_BLOCK_BYTES = 64 << 10


def _tail(file: BinaryIO, step: int) -> tuple[int, list[bytes]]:
    """Where the lines begin that may be about a step after the first `step`, and these lines."""
    begin = file.seek(0, 2)
    data = b""
    while begin > 0:
        size = min(_BLOCK_BYTES, begin)
        begin -= size
        file.seek(begin)
        data = file.read(size) + data
        cut = 0 if begin == 0 else data.find(b"\n") + 1  # what comes before may be half a line
        lines = data[cut:].splitlines(keepends=True)
        # All lines before that one are about steps that stay.
        if any(_is_step_before(line, step) for line in lines):
            return begin + cut, lines
    return 0, data.splitlines(keepends=True)


def _missing(kept: Sequence[bytes], candidates: Sequence[bytes], step: int) -> list[bytes]:
    """The lines among `candidates` about steps that stay and that `kept` does not have."""
    # Rows of a step are numbered from 0, so `step` finished ones end with row step - 1.
    newest = max((r["step"] for r in map(_row, kept) if r.get("kind") == "step"), default=-1)
    found: dict[int, bytes] = {}
    for line in candidates:
        row = _row(line)
        if row.get("kind") == "step" and newest < row["step"] < step:
            # Both candidates may be about the same step: it gets one line.
            found.setdefault(row["step"], line)
    return [line for _, line in sorted(found.items())]


def _is_step_before(line: bytes, step: int) -> bool:
    row = _row(line)
    return row.get("kind") == "step" and row["step"] < step


def _is_after(line: bytes, step: int, with_ends: bool) -> bool:
    """Whether a line is about a step after the first `step`, or the end of an epoch there."""
    row = _row(line)
    if row.get("kind") == "step":
        return bool(row["step"] >= step)
    if row.get("kind") in ("epoch", "eval", "why", "forecast"):
        # These carry the number of finished steps, not that of a row: hence > where a row has >=.
        return bool(row["step"] > step or (with_ends and row["step"] == step))
    return False


def _row(line: bytes) -> Row:
    """The row of a line about a step; empty for any other line, or one that a crash cut short."""
    row = row_of(line)
    return row if isinstance(row.get("step"), int) else {}


def _ends_torn(paths: RunPaths) -> bool:
    """Whether a crash cut the last line short."""
    with paths.metrics.open("rb") as file:
        if file.seek(0, 2) == 0:
            return False
        file.seek(-1, 2)
        return file.read(1) != b"\n"
