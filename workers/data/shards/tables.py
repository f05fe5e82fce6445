"""Parquet files through pyarrow, an optional package: what is in them, and columns of them.

Nothing here starts a thread: loading processes are forked after it, and read with it, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bundlerun.launcher.errors import ConfigError

SUFFIX = ".parquet"
_NOTES = b"huggingface"
"""What the package datasets writes of the columns."""


def check_pyarrow(data: Path) -> None:
    """Raises ConfigError where pyarrow is not installed; imports nothing."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(
            f"DATA {str(data)!r} needs the package pyarrow, which is not installed; pip install "
            "'bundlerun[parquet]'"
        )


class Table:
    """A parquet file.

    Args:
        path: of it.

    Raises:
        ConfigError: it cannot be read, is no parquet file, or has no rows.
    """

    def __init__(self, path: Path) -> None:
        check_pyarrow(path)
        self.path = path
        try:
            # No mapped memory: a file that becomes shorter would end the process.
            self._file = importlib.import_module("pyarrow.parquet").ParquetFile(
                path, memory_map=False, pre_buffer=False
            )
        except Exception as exc:  # of a library, which raises what it likes
            raise self.refusal(exc) from exc
        self.schema = self._file.schema_arrow
        self.features = _features(self.schema.metadata or {})
        """What the package datasets says of each column, where it has written the file."""
        if not self.num_rows:
            raise ConfigError(f"the shard {str(path)!r} has no rows")

    def refusal(self, exc: Exception) -> ConfigError:
        """What the user is told of an error."""
        said = getattr(exc, "strerror", None) or " ".join(str(exc).split())
        return ConfigError(f"cannot read the shard {str(self.path)!r}: {said}")

    @property
    def num_rows(self) -> int:
        """Of all groups."""
        return int(self._file.metadata.num_rows)

    @property
    def groups(self) -> list[tuple[int, int]]:
        """Rows of each group, and their bytes in memory."""
        found = (self._file.metadata.row_group(n) for n in range(self._file.num_row_groups))
        return [(int(group.num_rows), int(group.total_byte_size)) for group in found]

    def num_nulls(self, path: str) -> int:
        """Rows without a value at a path such as `image.bytes`, as far as the file counts them."""
        total = 0
        for number in range(self._file.num_row_groups):
            group = self._file.metadata.row_group(number)
            for column in (group.column(n) for n in range(group.num_columns)):
                if column.path_in_schema == path and column.statistics is not None:
                    total += column.statistics.null_count or 0
        return total

    def read_group(self, number: int, column: str) -> Any:  # noqa: ANN401 (pyarrow has no types)
        """A column of a group of rows: an array of pyarrow's.

        Raises:
            Exception: what pyarrow raises for a damaged file.
        """
        table = self._file.read_row_group(number, columns=[column], use_threads=False)
        return table.column(0).combine_chunks()

    def read(self, columns: Sequence[str]) -> list[list[Any]]:
        """Whole columns, as Python's own values.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            table = self._file.read(columns=list(columns), use_threads=False)
            return [table.column(name).to_pylist() for name in columns]
        except Exception as exc:
            raise self.refusal(exc) from exc

    def has(self, *columns: str) -> bool:
        """Whether there are such columns."""
        return all(name in self.schema.names for name in columns)

    def class_names(self, column: str) -> list[str]:
        """The names of a column's classes, where the package datasets has written them."""
        names = self.features.get(column, {}).get("names")
        return [str(name) for name in names] if isinstance(names, list) else []

    def check_columns(self, *columns: str) -> None:
        """Raises ConfigError where one is missing, with those that there are."""
        missing = [name for name in columns if name not in self.schema.names]
        if missing:
            raise ConfigError(
                f"the shard {str(self.path)!r} has no column {missing[0]!r}, only "
                f"{', '.join(map(repr, self.schema.names))}; give it one"
            )

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def _features(metadata: Mapping[bytes, bytes]) -> dict[str, dict[str, Any]]:
    with suppress(ValueError, KeyError, AttributeError, TypeError):
        found = json.loads(metadata[_NOTES])["info"]["features"]
        return {name: of for name, of in found.items() if isinstance(of, dict)}
    return {}
