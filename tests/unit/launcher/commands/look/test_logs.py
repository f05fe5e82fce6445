import json
import os
from pathlib import Path

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.run_folder.outcome import Outcome, write_outcome
from bundlerun.launcher.run_folder.paths import RunPaths


def put(paths: RunPaths, where: str, text: str, *, at: float, rank: int = -1) -> Path:
    node, _, folder = where.partition("/")
    path = paths.logs / where / "worker.log"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    os.utime(path.parents[1], (at, at))
    if rank >= 0:
        event = {"node": node, "event": "met", "rank": rank, "log": folder, "t_s": at, "boot": "b"}
        paths.events.mkdir(parents=True, exist_ok=True)
        with paths.node_events(node).open("a") as file:
            file.write(json.dumps(event) + "\n")
    return path


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "r")
    put(paths, "b/z_1/attempt_0/0", "first start\n", at=10, rank=2)
    put(paths, "b/a_2/attempt_0/0", "one\ntwo\nthr", at=20, rank=3)
    put(paths, "b/a_2/attempt_1/0", "three\nfour\n", at=30, rank=3)
    put(paths, "b/a_2/attempt_1/1", "", at=30)
    put(paths, "a/x_3/attempt_0/0", "old\n", at=5, rank=1)
    paths.metrics.write_text("")
    return paths


def shown(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["logs", *map(str, words)]) == 0
    return capsys.readouterr().out


def test_the_last_attempt_of_each_node_is_shown(
    paths: RunPaths, capsys: pytest.CaptureFixture[str]
) -> None:
    assert shown(capsys, paths.root) == (
        "==> node a, attempt 0, local rank 0, rank 1 <==\nold\n"
        "==> node b, start 2, attempt 1, local rank 0, rank 3 <==\nthree\nfour\n"
        "==> node b, start 2, attempt 1, local rank 1 <==\n"
    )


def test_one_rank_is_shown_alone(paths: RunPaths, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, paths.root, "--rank", 3) == "three\nfour\n"
    assert shown(capsys, paths.root, "--rank", 3, "-n", 1) == "four\n"
    assert shown(capsys, paths.root, "--node", "b", "--rank", 0) == "three\nfour\n"
    every = shown(capsys, paths.root, "--rank", 3, "--attempt", "all")
    assert every.count("==>") == 2
    assert "two\n" in every


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--node", "bb"], "--node 'bb' is not in the run; nearest: b"),
        (["--rank", "7"], "there are ranks 1, 2, 3 on a, b, attempts 0, 1"),
        (["--attempt", "x"], "--attempt 'x' is neither a number nor last nor all"),
        (["--lines", "-1"], "--lines -1 is negative"),
    ],
)
def test_a_choice_of_nothing_is_refused(
    paths: RunPaths, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert main(["logs", str(paths.root), *words]) == 2
    assert text in capsys.readouterr().err


def test_a_run_without_logs_says_where_they_may_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert main(["logs", str(tmp_path)]) == 2
    assert "where --log-dir says" in capsys.readouterr().err


def test_following_shows_new_lines_and_new_attempts_until_the_run_ends(
    paths: RunPaths, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(seconds: float) -> None:
        if not seconds:
            return
        worker = paths.logs / "b/a_2/attempt_1/0/worker.log"
        worker.write_text(worker.read_text() + "five\nsi")
        put(paths, "a/x_3/attempt_1/0", "new\n", at=40, rank=0)
        write_outcome(paths, Outcome(state="done", step=1, reason="", exit_code=0))

    monkeypatch.setattr("time.sleep", step)
    out = shown(capsys, paths.root, "--follow", "-n", 1)
    assert out.endswith("b/3 | five\na/0 | new\n")
