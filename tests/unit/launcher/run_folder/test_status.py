from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.report.status_text import status_lines
from bundlerun.launcher.run_folder.outcome import Outcome
from bundlerun.launcher.run_folder.status import status_of
from bundlerun.launcher.terminal import Terminal


def step(number: int, at: float) -> dict[str, Any]:
    return {"time": at, "kind": "step", "step": number, "epoch": 0, "loss": 1.5}


HISTORY = [
    {"time": 100.0, "kind": "start"},
    step(0, 101.0),
    step(1, 102.0),
    {"time": 107.5, "kind": "restart", "step": 2, "source": "snapshot"},
    step(2, 108.5),
    step(3, 109.5),
]


def event(t_s: float, name: str, **details: object) -> dict[str, Any]:
    return {
        "t_s": t_s,
        "wall": f"2026-01-01T00:00:{t_s:06.3f}",
        "node": "a",
        "event": name,
    } | details


EVENTS = [
    event(1.0, "asks for a round"),
    event(1.1, "coordinator: round", round=1, nodes=["a", "b"]),
    event(2.0, "first step", local_rank=0),
    event(5.0, "rank gone", local_rank=1, why="it was killed"),
    event(5.1, "asks for a round"),
    event(5.2, "coordinator: round", round=2, nodes=["a"]),
    event(5.25, "in a round", round=2),
    event(5.3, "starts", local_rank=0),
    event(5.5, "restored", local_rank=0),
    event(5.9, "first step", local_rank=0),
]


def test_a_running_run_is_told_with_goodput_and_recovery() -> None:
    status = status_of(HISTORY, EVENTS, None, checkpoints=[2], now=110.0)
    assert (status.state, status.step, status.num_restarts) == ("running", 4, 1)
    assert (status.nodes, status.round, status.checkpoint) == (("a",), 2, 2)
    assert status.step_s == 1.0
    assert status.goodput == pytest.approx(4 / 9.5)
    (recovery,) = status.recoveries
    assert recovery.why == "local rank 1 died"
    assert recovery.phases == {
        "workers stopped": 0.1, "round": 0.25, "processes": 0.3, "state": 0.5, "first step": 0.9,
    }  # fmt: skip
    assert status.failures == ("2026-01-01T00:00:05  a, local rank 1 died: it was killed",)


def test_a_node_that_was_started_again_goes_on_after_what_it_did_before() -> None:
    def at(boot: str, t_s: float, wall: str, name: str) -> dict[str, Any]:
        return {**event(t_s, name), "boot": boot, "wall": f"2026-01-01T00:{wall}"}

    events = [
        at("one", 500.0, "00:00.000", "asks for a round"),
        at("one", 501.0, "00:01.000", "first step"),
        at("one", 502.0, "00:02.000", "rank gone"),
        at("two", 4.0, "01:00.000", "asks for a round"),
        at("two", 5.0, "01:01.000", "in a round"),
        at("two", 6.0, "01:02.000", "first step"),
    ]
    (recovery,) = status_of(HISTORY, events, None, checkpoints=[2], now=110.0).recoveries
    assert recovery.phases == {"workers stopped": 58.0, "round": 59.0, "first step": 60.0}
    # Within one start of the machine a wall clock that jumps back changes nothing.
    events[4]["wall"] = events[5]["wall"] = "2026-01-01T00:00:30.000"
    (recovery,) = status_of(HISTORY, events, None, checkpoints=[2], now=110.0).recoveries
    assert list(recovery.phases) == ["workers stopped", "round", "first step"]


LOST = "Traceback ...\nRuntimeError: [gloo/transport] Connection closed by peer"
NODE_KILLED = [
    event(1.0, "in a round", round=1),
    event(2.0, "first step", local_rank=0),
    event(5.0, "failed", local_rank=0, text=LOST, is_follower=True),
    event(5.1, "asks for a round"),
    event(5.3, "coordinator: lost", why="node b is silent", lost="b"),
    event(5.4, "in a round", round=2),
    event(5.9, "first step", local_rank=0),
]


def test_a_lost_node_is_named_and_not_the_survivor_that_noticed() -> None:
    status = status_of(HISTORY, NODE_KILLED, None, checkpoints=[2], now=110.0)
    assert status.failures == ("2026-01-01T00:00:05  b was lost: node b is silent",)
    assert status.last_events == ("2026-01-01T00:00:05  a: b was lost: node b is silent",)
    (recovery,) = status.recoveries
    assert (recovery.node, recovery.why) == ("a", "node b was lost")


@pytest.mark.parametrize(
    ("shape", "brought", "then"),
    [
        ("1,1", "stage 2 from a", "goes on as shape 1,1, with stage 2 from a"),
        ("1,1,1", "stage 2 from a", "with stage 2 from a"),
        ("1,1", "", "goes on as shape 1,1"),
        ("1,1,1", "", ""),
    ],
)
def test_in_which_shape_it_goes_on_and_with_what_is_told(
    shape: str, brought: str, then: str
) -> None:
    first, after = (
        [event(at, "met", rank=0, shape=one), event(at, "met", rank=1, shape=one)]
        for at, one in ((1.5, "1,1,1"), (5.5, shape))
    )
    restored = event(5.6, "restored", source="snapshot", brought=brought)
    events = [NODE_KILLED[0], *first, *NODE_KILLED[1:-1], *after, restored, NODE_KILLED[-1]]
    (recovery,) = status_of(HISTORY, events, None, checkpoints=[2], now=110.0).recoveries
    assert recovery.then == then


def test_at_what_throughput_it_goes_on_in_another_shape_is_told() -> None:
    begun = datetime.fromisoformat("2026-01-01T00:00:00").timestamp()

    def rows(first: int, at: float, gap: float, count: int) -> list[dict[str, Any]]:
        steps = [step(first + i, begun + at + i * gap) for i in range(count)]
        return [{**row, "samples": 32} for row in steps]

    met = [event(1.5, "met", shape="1,1,1"), event(5.5, "met", shape="1,1")]
    events = sorted([*NODE_KILLED, *met], key=lambda row: row["wall"])
    start = {"time": begun, "kind": "start"}
    restart = {"time": begun + 5.7, "kind": "restart", "step": 30, "source": "snapshot"}
    history = [start, *rows(0, 2.0, 0.1, 30), restart, *rows(30, 6.0, 0.125, 20)]

    def told(*more: dict[str, Any], until: int = 100) -> str:
        metrics = [*history[:until], *more]
        return status_of(metrics, events, None, now=begun + 20).recoveries[0].then

    assert told() == "goes on as shape 1,1, at 0.80 of the throughput"
    # What comes after another start is not of this shape.
    again = {"time": begun + 9.0, "kind": "restart", "step": 50, "source": "snapshot"}
    assert told(again, *rows(50, 9.1, 5.0, 20)).endswith("at 0.80 of the throughput")
    # Of a few steps nothing is known yet.
    assert told(until=35) == "goes on as shape 1,1"


def test_a_rank_that_died_elsewhere_is_named_with_its_node() -> None:
    elsewhere = event(4.9, "rank gone", local_rank=1, why="it was killed") | {"node": "b"}
    events = sorted([*NODE_KILLED[:4], elsewhere, *NODE_KILLED[5:]], key=lambda row: row["wall"])
    status = status_of(HISTORY, events, None, checkpoints=[2], now=110.0)
    assert [recovery.why for recovery in status.recoveries] == ["local rank 1 of node b died"]
    assert status.failures == ("2026-01-01T00:00:04  b, local rank 1 died: it was killed",)


def test_a_run_that_says_nothing_is_not_called_running() -> None:
    assert status_of(HISTORY, [], None, checkpoints=[], now=1000.0).state == "quiet"
    assert status_of([], [], None, checkpoints=[], now=1000.0).state == "not begun"


def test_a_run_whose_holder_is_gone_without_an_end_is_lost() -> None:
    gone = "killed or lost: process 7 on node a"
    found = status_of(HISTORY, [], None, checkpoints=[], now=110.0, gone=gone)
    assert (found.state, found.reason) == ("lost", gone)
    outcome = Outcome(state="done", exit_code=0, reason="all", step=4)
    assert status_of(HISTORY, [], outcome, checkpoints=[4], now=110.0, gone=gone).state == "done"


def test_the_outcome_has_the_last_word() -> None:
    outcome = Outcome(state="failed", exit_code=1, reason="3 attempts", step=4)
    assert status_of(HISTORY, EVENTS, outcome, checkpoints=[2], now=110.0).reason == "3 attempts"


def test_the_command_prints_text_and_one_json_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in HISTORY)
    (tmp_path / "metrics.jsonl").write_text(rows + '{"torn')
    assert main(["status", str(tmp_path)]) == 0
    assert "step         4, epoch 1, loss 1.5000" in capsys.readouterr().out
    assert main(["status", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 4
    assert main(["status", str(tmp_path / "none")]) == 2


def test_drain_leaves_a_request_unless_the_run_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["drain", str(tmp_path)]) == 2
    assert "no run has begun in" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").touch()
    assert main(["drain", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "drain.json").read_text()) == {"why": "bundlerun drain"}
    (tmp_path / "drain.json").unlink()
    end = {"state": "done", "exit_code": 0, "reason": "all", "step": 1, "first_error": None}
    (tmp_path / "outcome.json").write_text(json.dumps(end))
    assert main(["drain", str(tmp_path)]) == 0
    assert "ended already: done" in capsys.readouterr().out
    assert not (tmp_path / "drain.json").exists()
    assert main(["drain", str(tmp_path / "none")]) == 2


def test_a_slow_rank_is_told_until_it_is_taken_back_or_the_ranks_meet_again() -> None:
    met = event(6.0, "met")
    slow = event(7.0, "slow rank", text="rank 3 computes 2.0 times as long as its peers")
    again = event(8.0, "no slow rank", text="all ranks compute as their peers again")

    def told(*more: dict[str, Any], outcome: Outcome | None = None) -> tuple[str, ...]:
        return status_of(HISTORY, [*EVENTS, *more], outcome, now=110.0).slow

    assert told(met, slow) == ("rank 3 computes 2.0 times as long as its peers",)
    assert told(met, slow, again) == ()
    assert told(met, slow, met) == ()
    assert told(met, slow, outcome=Outcome(state="done", exit_code=0, reason="", step=4)) == ()


def test_copies_that_are_short_are_told_each_once_until_the_ranks_meet_again() -> None:
    met = event(6.0, "met")
    short = event(7.0, "copies short", text="node b has no room for a copy of stage 0")

    def told(*more: dict[str, Any]) -> tuple[str, ...]:
        return status_of(HISTORY, [*EVENTS, *more], None, now=110.0).short

    assert told(met, short, short) == ("node b has no room for a copy of stage 0",)
    assert told(met, short, met) == ()
    status = status_of(HISTORY, [*EVENTS, met, short], None, now=110.0)
    lines = status_lines(status, [], Terminal())
    assert "copies       node b has no room for a copy of stage 0" in lines


def test_a_hand_over_is_no_restart() -> None:
    moved = {"time": 108.0, "kind": "restart", "step": 3, "source": "hand-over"}
    before = status_of(HISTORY, EVENTS, None, now=110.0).num_restarts
    assert before
    assert status_of([*HISTORY, moved], EVENTS, None, now=110.0).num_restarts == before
