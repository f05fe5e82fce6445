from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from bundlerun.launcher.run_folder.events import EventName, Events, read_events


def test_several_processes_append_to_one_file_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    agent = Events(tmp_path / "a.jsonl", "a", clock=lambda: 10.0)
    rank = Events(tmp_path / "a.jsonl", "a", {"local_rank": 1}, clock=lambda: 10.5)
    agent.note("over", {"why": "node b is lost"})
    rank.note("failed")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"t_s": 11.0, "eve')
    found = read_events(tmp_path)
    assert [(row["t_s"], row["event"]) for row in found] == [(10.0, "over"), (10.5, "failed")]
    assert (found[0]["why"], found[1]["local_rank"]) == ("node b is lost", 1)


def test_nodes_are_put_in_order_of_the_wall_clock(tmp_path: Path) -> None:
    for node, wall in (("a", "2026-01-01T00:00:02.000+00:00"), ("b", "2026-01-01T00:00:01.000")):
        line = {"t_s": 1.0, "wall": wall, "node": node, "event": "lost"}
        (tmp_path / f"{node}.jsonl").write_text(json.dumps(line) + "\n")
    assert [row["node"] for row in read_events(tmp_path)] == ["b", "a"]


def test_a_folder_that_cannot_be_written_costs_the_log_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    events = Events(tmp_path / "file" / "a.jsonl", "a")
    events.note("coordinator: lost")
    events.close()
    assert "no event log" in caplog.text


def test_every_event_is_in_the_table_of_the_docs() -> None:
    text = (Path(__file__).parents[4] / "docs" / "failures.md").read_text()
    table = text.split("| event | by | says |")[1].split("\n\n")[0]
    texts = {name: (f"`{name}`", f"`{name.rpartition(': ')[2]}`") for name in get_args(EventName)}
    assert [name for name, forms in texts.items() if not any(f in table for f in forms)] == []
