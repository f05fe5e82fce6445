from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

from bundlerun.launcher.why.flight import missed, read_record, records_of


def entry(number: int, state: str, group: str = "collect/stage0") -> dict[str, Any]:
    return {
        "process_group": (group, "undefined"),
        "collective_seq_id": number,
        "p2p_seq_id": 0,
        "profiling_name": "nccl:all_reduce",
        "state": state,
        "retired": state == "completed",
    }


def record(*entries: dict[str, Any]) -> dict[str, Any]:
    config = {"0": {"name": "collect/stage0", "desc": "undefined", "ranks": "[0, 2, 4]"}}
    return {"version": "2.10", "pg_config": config, "entries": list(entries)}


def test_a_rank_that_has_not_come_to_an_operation_is_told() -> None:
    records = {
        0: record(entry(6, "completed"), entry(7, "started")),
        2: record(entry(6, "completed"), entry(7, "scheduled")),
        4: record(entry(6, "completed")),
    }
    (found,) = missed(records)
    assert (found.number, found.begun, found.missing) == (7, (0, 2), (4,))
    assert found.text == (
        "operation 7 (nccl:all_reduce) of collect/stage0: begun by ranks 0, 2; not by: 4"
    )


def test_a_rank_without_a_record_is_missed_as_well() -> None:
    (found,) = missed({0: record(entry(7, "started")), 2: record(entry(7, "started"))})
    assert found.missing == (4,)


def test_an_operation_that_all_are_in_is_told_after_those_that_miss_somebody() -> None:
    link = entry(3, "started", "a link")
    records = {rank: record(entry(7, "completed"), link) for rank in (0, 2, 4)}
    records[4]["entries"][0]["collective_seq_id"] = 6
    first, second = missed(records)
    assert (first.group, second.group, second.missing) == ("collect/stage0", "a link", ())
    assert missed({rank: record(entry(7, "completed")) for rank in (0, 2, 4)}) == []


def test_a_record_is_read_as_plain_values_only(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "made"),)

    evil, cut, good = (tmp_path / name for name in ("evil", "cut", "good"))
    evil.write_bytes(pickle.dumps({"entries": [Evil()]}))
    good.write_bytes(pickle.dumps(record(entry(1, "started"))))
    cut.write_bytes(good.read_bytes()[:-20])
    assert read_record(evil) == {}
    assert not (tmp_path / "made").exists()
    files = [(0, evil), (1, cut), (2, tmp_path / "missing"), (3, good)]
    assert list(records_of(files)) == [3]
