from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.agent.failure import explain_end
from bundlerun.launcher.run_folder.outcome import (
    FirstError,
    Outcome,
    first_of,
    read_outcome,
    write_outcome,
)
from bundlerun.launcher.run_folder.paths import RunPaths


def event(second: float, node: str, name: str, **details: object) -> dict[str, Any]:
    wall = f"2026-01-01T00:00:{second:06.3f}+00:00"
    return {"wall": wall, "node": node, "event": name, **details}


LOST_PEER = "Traceback ...\nRuntimeError: [gloo/transport] Connection closed by peer"


def test_a_killed_rank_stands_before_those_that_lost_it() -> None:
    first = first_of(
        [
            event(1.0, "a", "failed", local_rank=0, text="ValueError: got over"),
            event(2.0, "a", "first step", local_rank=0),
            event(3.0, "b", "failed", local_rank=1, text=LOST_PEER, is_follower=True),
            event(3.1, "a", "rank gone", local_rank=1, why="it was killed"),
            event(3.2, "a", "failed", local_rank=0, text=LOST_PEER, is_follower=True),
        ]
    )
    assert first is not None
    assert (first.node, first.local_rank, first.text) == ("a", 1, "local rank 1: it was killed")


def test_an_error_of_its_own_stands_before_a_lost_connection_and_its_own_end() -> None:
    first = first_of(
        [
            event(3.0, "a", "failed", local_rank=0, text=LOST_PEER, is_follower=True),
            event(3.1, "a", "failed", local_rank=1, text="Traceback ...\nValueError: boom"),
            event(3.3, "a", "rank gone", local_rank=1, why="it was killed"),
            event(9.0, "a", "failed", local_rank=0, text="ValueError: of the next attempt"),
        ]
    )
    assert first is not None
    assert (first.local_rank, first.last_line) == (1, "ValueError: boom")


def lost_b(second: float, **details: object) -> dict[str, Any]:
    why = "node b has broken its connection"
    return event(second, "a", "coordinator: lost", why=why, lost="b") | details


def test_a_lost_node_stands_before_the_survivor_whose_connections_broke() -> None:
    """A killed node takes connections with it at once; that it is gone is known a little later."""
    first = first_of(
        [
            event(1.0, "a", "first step", local_rank=0),
            event(3.0, "a", "failed", local_rank=0, text=LOST_PEER, is_follower=True),
            event(3.1, "a", "failed", local_rank=1, text=LOST_PEER, is_follower=True),
            lost_b(3.3),
        ]
    )
    assert first == FirstError(
        node="b",
        local_rank=-1,
        text="node b has broken its connection",
        when="2026-01-01T00:00:03.300+00:00",
    )


def test_a_node_that_goes_of_its_own_accord_is_no_failure() -> None:
    assert first_of([lost_b(3.0, lost="")]) is None
    assert first_of([event(3.0, "a", "coordinator: over", why="node c joins", lost="")]) is None


def test_an_error_of_its_own_stands_before_the_loss_of_its_node() -> None:
    """The agent of a node whose rank failed may give up: that is what follows."""
    first = first_of([event(3.0, "b", "failed", local_rank=1, text="ValueError: x"), lost_b(3.5)])
    assert first is not None
    assert (first.node, first.local_rank) == ("b", 1)


def test_without_a_failure_there_is_no_first_error() -> None:
    assert first_of([event(1.0, "a", "first step"), event(2.0, "a", "over", why="x")]) is None


def test_what_is_written_is_read_and_the_first_of_several_nodes_has_the_word(
    tmp_path: Path,
) -> None:
    paths = RunPaths(tmp_path)
    assert read_outcome(paths) is None
    error = FirstError(node="a", local_rank=1, text="ValueError: boom")
    failed = Outcome(state="failed", exit_code=1, reason="r", step=4, first_error=error)
    write_outcome(paths, failed, is_last_word=False)
    write_outcome(
        paths, Outcome(state="failed", exit_code=2, reason="later", step=4), is_last_word=False
    )
    found = read_outcome(paths)
    assert found is not None
    assert (found.reason, found.first_error, bool(found.when)) == ("r", error, True)
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]
    write_outcome(paths, Outcome(state="done", exit_code=0, reason="all", step=9))
    again = read_outcome(paths)
    assert again is not None
    assert again.state == "done"
    paths.outcome.write_text('{"state": "do')
    assert read_outcome(paths) is None


def test_only_the_node_of_the_first_error_shows_its_traceback() -> None:
    error = FirstError(node="a", local_rank=1, text="Traceback ...\nValueError: boom\n")
    outcome = Outcome(state="failed", exit_code=2, reason="3 attempts", step=0, first_error=error)
    assert explain_end("3 attempts", outcome, node_name="a") == (
        "Traceback ...\nValueError: boom\n"
        "the run has failed: 3 attempts; first of all local rank 1 of node a as above",
        2,
    )
    assert explain_end("3 attempts", outcome, node_name="b") == (
        "the run has failed: 3 attempts; first of all local rank 1 of node a: ValueError: boom",
        2,
    )
    assert explain_end("closed", None, node_name="b") == ("the run is over: closed", 1)


@pytest.mark.parametrize(("shows_ranks", "lines"), [(True, []), (False, ["error: no"])])
def test_an_error_in_one_line_that_a_rank_has_said_is_not_said_again(
    shows_ranks: bool, lines: list[str]
) -> None:
    error = FirstError(node="a", local_rank=0, text="error: no")
    outcome = Outcome(state="failed", exit_code=2, reason="r", step=0, first_error=error)
    text, _ = explain_end("r", outcome, node_name="a", shows_ranks=shows_ranks)
    last = "the run has failed: r; first of all local rank 0 of node a as above"
    assert text.splitlines() == [*lines, last]
