"""What an agent tells of a start of its ranks that has failed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.board import Board
from launcher.events import Events
from launcher.paths import RunPaths
from launcher.ranks import Ranks

OWN = "Traceback ...\nValueError: boom"
FOLLOWER = "Traceback ...\nRuntimeError: [gloo] Connection closed by peer"


@pytest.mark.parametrize(
    ("texts", "story"),
    [
        ([], ""),
        ([FOLLOWER], ""),
        ([FOLLOWER, OWN], "node a: local rank 1 failed: ValueError: boom; all ranks start again"),
    ],
)
def test_the_error_of_a_rank_that_starts_again_is_told_where_it_was(
    tmp_path: Path, texts: list[str], story: str
) -> None:
    board, paths = Board.create(), RunPaths(tmp_path)
    board.run_dir = str(tmp_path)
    events = Events(paths.node_events("a"), "a")
    events.note("failed", {"local_rank": 0, "text": "ValueError: of an earlier start"})
    time.sleep(0.001)
    ranks = Ranks(board, events, lease_s=1.5, give_up_after=3)
    ranks.begin()
    for local_rank, text in enumerate(texts):
        events.note("failed", {"local_rank": local_rank, "text": text})
    assert ranks.story("a") == story
