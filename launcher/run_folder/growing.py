"""JSON Lines that somebody looks at again and again: only what is new of them is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bundlerun.launcher.run_folder.history import Row, rows_of

_MARK_BYTES = 256


class Growing:
    """The whole lines of a file that grows; who writes it may also cut off its end.

    Args:
        file: which need not be there yet.
        is_fit: whether a line is what its readers count on; others are left out.
    """

    def __init__(self, file: Path, is_fit: Callable[[Row], bool]) -> None:
        self._file = file
        self._is_fit = is_fit
        self.rows: list[Row] = []
        """As of the last `look`."""
        self._begin_again()

    def _begin_again(self) -> None:
        self.rows = []
        self._offset = 0
        self._mark = b""
        """The last bytes before the offset: others there mean that lines were taken out."""

    def look(self) -> bool:
        """Reads what is new; whether anything has changed.

        Raises:
            OSError: the file is there and cannot be read.
        """
        try:
            with self._file.open("rb") as stream:
                changed = False
                stream.seek(self._offset - len(self._mark))
                if stream.read(len(self._mark)) != self._mark:
                    self._begin_again()
                    stream.seek(0)
                    changed = True
                # Whole lines only: the rest of the last one is on its way.
                data = stream.read()
        except FileNotFoundError:
            had = bool(self.rows)
            self._begin_again()
            return had
        data = data[: data.rfind(b"\n") + 1]
        if not data:
            return changed
        self.rows += filter(self._is_fit, rows_of(data))
        self._offset += len(data)
        self._mark = (self._mark + data)[-_MARK_BYTES:]
        return True
