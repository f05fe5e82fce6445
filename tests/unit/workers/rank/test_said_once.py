"""One rank of a node says what all of them would; nothing is ever said by nobody."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from bundlerun.launcher.agent.entry import ERROR_FILE
from bundlerun.workers.rank import said_once as room
from bundlerun.workers.rank.said_once import said_once


def rank(folder: Path, number: int) -> dict[str, str]:
    return {ERROR_FILE: str(folder / str(number) / "error.json")}


def test_one_rank_says_it_and_the_others_wait_until_it_has(tmp_path: Path) -> None:
    found: list[bool] = []

    def another() -> None:
        with said_once("no", rank(tmp_path, 1)) as is_first:
            found.append(is_first)

    with said_once("no", rank(tmp_path, 0)) as is_first:
        assert is_first
        thread = threading.Thread(target=another)
        thread.start()
        assert not found
    thread.join()
    assert found == [False]
    with said_once("something else", rank(tmp_path, 1)) as is_first:
        assert is_first


def test_who_dies_before_it_is_said_is_stood_in_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "_WAIT_S", 0.0)
    with pytest.raises(SystemExit), said_once("no", rank(tmp_path, 0)):
        raise SystemExit
    with said_once("no", rank(tmp_path, 1)) as is_first:
        assert is_first


@pytest.mark.parametrize("environ", [{}, {ERROR_FILE: "error.json"}, {ERROR_FILE: "/no/0/e.json"}])
def test_without_a_folder_of_the_agent_each_says_it(environ: dict[str, str]) -> None:
    for _ in range(2):
        with said_once("no", environ) as is_first:
            assert is_first
