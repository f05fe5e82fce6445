"""What torch's flight recorder says of NCCL: who has not come to an operation that others are in.

A record is a pickle that torch writes before it ends a rank. It is made of plain values, and is
read as such: nothing that it names is imported or called.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

_MOST_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Missed:
    """An operation that some members of a group have begun, and others have not.

    Args:
        group: its name, such as `collect/stage1/node0`.
        operation: such as `nccl:all_reduce`, or `nccl:send 0->1`.
        number: counts the operations of the group.
        begun, missing: ranks.
    """

    group: str
    operation: str
    number: int
    begun: tuple[int, ...]
    missing: tuple[int, ...]

    @property
    def text(self) -> str:
        """For people."""
        missing = ", ".join(map(str, self.missing)) or "none"
        begun = ", ".join(map(str, self.begun))
        return (
            f"operation {self.number} ({self.operation}) of {self.group}: begun by ranks {begun}; "
            f"not by: {missing}"
        )


class _Plain(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module}.{name} is no plain value")


def read_record(file: Path) -> Mapping[str, Any]:
    """The values of a record; empty where it is not whole, or none."""
    with suppress(OSError, pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError):
        with file.open("rb") as stream:
            found = _Plain(io.BytesIO(stream.read(_MOST_BYTES))).load()
        if isinstance(found, dict):
            return found
    return {}


def missed(records: Mapping[int, Mapping[str, Any]]) -> list[Missed]:
    """Pure: operations that are not over, of which a member is behind; by group.

    Args:
        records: of each rank that has one.
    """
    last = {rank: _last_of_groups(record) for rank, record in records.items()}
    members = {
        group: ranks for record in records.values() for group, ranks in _members(record).items()
    }
    found = []
    for group in sorted({group for own in last.values() for group in own}):
        own = {rank: ops[group] for rank, ops in last.items() if group in ops}
        ahead = max(number for number, _, _ in own.values())
        begun = [rank for rank, (number, _, _) in own.items() if number == ahead]
        behind = sorted({*members.get(group, own)} - {*begun})
        operation, is_over = next(
            (name, over) for number, name, over in own.values() if number == ahead
        )
        if behind or not is_over:
            found.append(
                Missed(
                    group=group,
                    operation=operation,
                    number=ahead,
                    begun=tuple(sorted(begun)),
                    missing=tuple(behind),
                )
            )
    # Where somebody is missing says more than where all have come.
    return sorted(found, key=lambda each: not each.missing)


def _last_of_groups(record: Mapping[str, Any]) -> dict[str, tuple[int, str, bool]]:
    """Of each group the last operation that the rank has begun: number, name, is it over."""
    found: dict[str, tuple[int, str, bool]] = {}
    for entry in record.get("entries", ()):
        with suppress(KeyError, TypeError, IndexError, ValueError):
            group = str(entry["process_group"][0])
            counts = (entry.get("collective_seq_id", 0), entry.get("p2p_seq_id", 0))
            number = max(int(count or 0) for count in counts)
            is_over = entry.get("state") == "completed" or bool(entry.get("retired"))
            if number >= found.get(group, (-1, "", True))[0]:
                found[group] = number, str(entry.get("profiling_name", "?")), is_over
    return found


def _members(record: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, about in record.get("pg_config", {}).items():
        with suppress(KeyError, TypeError, ValueError):
            text = str(about["ranks"]).strip("[] ")
            found[str(about.get("name", name))] = tuple(int(part) for part in text.split(","))
    return found


def records_of(files: Sequence[tuple[int, Path]]) -> dict[int, Mapping[str, Any]]:
    """The records of ranks, by rank; without those that cannot be read."""
    found = {rank: read_record(file) for rank, file in files}
    return {rank: record for rank, record in found.items() if record}
