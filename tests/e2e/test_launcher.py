"""The agent and its workers: how failures are told, what restarts, what a signal leaves behind."""

from __future__ import annotations

import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from benchmarks.cluster.programs import Program
from tests.warm import Warm

HERE = Path(__file__).parent
BUNDLERUN = str(Path(sys.executable).with_name("bundlerun"))
LIMIT_S = 120.0


def actor_words(run_dir: Path, act: str, *options: str) -> list[str]:
    return [sys.executable, str(HERE / "launch_actor.py"), str(run_dir), act, *options]


@contextmanager
def started(warm: Warm, words: list[str], output: Path) -> Iterator[Program]:
    """An agent, and the end of all it left."""
    with output.open("wb") as file:
        agent = warm.start(words, stdout=file, stderr=file)
    try:
        yield agent
    finally:
        with suppress(ProcessLookupError):
            os.killpg(agent.pid, signal.SIGKILL)
        agent.wait()


def wait_for_text(file: Path, text: str, count: int) -> None:
    deadline = time.monotonic() + LIMIT_S
    while file.read_text().count(text) < count:
        assert time.monotonic() < deadline, file.read_text()
        time.sleep(0.02)


def test_a_failure_is_told_once_with_its_own_traceback(warm: Warm, tmp_path: Path) -> None:
    done = warm.run(actor_words(tmp_path, "raise"), timeout=LIMIT_S)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "actor.py" in lines[1]
    assert "ValueError: boom" in lines
    assert lines[-1].startswith("rank 1 (node n1, local rank 1) failed as above; the other 3 of")
    assert done.stderr.count("Traceback") == 1


def test_what_workers_print_is_on_the_console_and_in_their_logs(warm: Warm, tmp_path: Path) -> None:
    done = warm.run(actor_words(tmp_path, "nothing"), timeout=LIMIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(line.split()[1] for line in done.stdout.splitlines()) == ["0", "1", "2", "3"]
    logs = sorted(tmp_path.glob("logs/n1/*/attempt_0/*/worker.log"))
    assert [log.read_text().split()[1] for log in logs] == ["0", "1", "2", "3"]
    assert (tmp_path / "logs/n1/agent.log").exists()


def test_torchs_tee_prefixes_the_lines_and_fills_its_own_files(warm: Warm, tmp_path: Path) -> None:
    done = warm.run(actor_words(tmp_path, "nothing", "tee=3"), timeout=LIMIT_S)
    assert done.returncode == 0
    assert "[worker0]:rank 0" in done.stdout
    assert len(list(tmp_path.glob("logs/n1/*/attempt_0/*/stdout.log"))) == 4
    assert not list(tmp_path.glob("logs/n1/*/attempt_0/*/worker.log"))


def test_an_exit_code_that_says_something_is_passed_on(warm: Warm, tmp_path: Path) -> None:
    done = warm.run(actor_words(tmp_path, "resumable"), timeout=LIMIT_S)
    assert done.returncode == 75
    assert "rank 1 (node n1, local rank 1) ended with exit code 75" in done.stderr


def test_of_a_killed_rank_and_its_followers_the_killed_one_is_named(
    warm: Warm, tmp_path: Path
) -> None:
    done = warm.run(actor_words(tmp_path, "die"), timeout=LIMIT_S)
    assert done.returncode == 1
    *seen, story = done.stderr.splitlines()
    assert story.startswith("rank 1 (node n1, local rank 1) was killed by SIGKILL")
    # Whoever of torch's agent and our watch looks first tells it; both look every 0.1 s.
    assert all(line.startswith("local rank 1 ") for line in seen)
    assert "Traceback" not in done.stderr


def test_a_killed_rank_is_started_again_with_all_others(warm: Warm, tmp_path: Path) -> None:
    done = warm.run(actor_words(tmp_path, "die once", "max-restarts=1"), timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    for attempt in range(2):
        assert done.stdout.count(f"attempt {attempt} met 4") == 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_agent_ends_its_workers_at_once(
    warm: Warm, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "output"
    with started(warm, actor_words(tmp_path, "wait"), output) as agent:
        wait_for_text(output, "met 4", 4)
        family = psutil.Process(agent.pid).children(recursive=True)
        agent.send_signal(number)
        assert agent.wait(timeout=10) == 128 + number  # torch would give a stuck one 30 s
        _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    assert f"stopped by {number.name}" in output.read_text()
    assert "Traceback" not in output.read_text()


def test_workers_keep_the_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    agent = subprocess.Popen(actor_words(tmp_path, "nothing"), stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the other end is closed: all have ended
        while True:
            shown += os.read(ours, 4096)
    os.close(ours)
    assert agent.wait(timeout=LIMIT_S) == 0, shown
    assert shown.count(b"terminal True") == 4, shown


TINY = f"--model={HERE.parent / 'ranks' / 'tiny_model.py'}:build"


def test_the_original_command_line_runs_on_two_nodes(warm: Warm, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    outputs = [tmp_path / f"node{rank}" for rank in range(2)]
    words = [
        BUNDLERUN, "classic", "--batch-size=8", "--num-hp=1", "--world-size=2", "--itr=2",
        "--IP=127.0.0.1", f"--portNum={port}", "--devices=cpu", TINY,
        f"--run-dir={tmp_path / 'run'}", "synthetic",
    ]  # fmt: skip
    with (
        started(warm, [*words, "--rank=0"], outputs[0]) as first,
        started(warm, [*words, "--rank=1"], outputs[1]) as second,
    ):
        codes = [agent.wait(timeout=LIMIT_S) for agent in (first, second)]
    text = "\n".join(output.read_text() for output in outputs)
    assert codes == [0, 0], text
    assert "bundlerun run --model=" in text
    assert "2 bundles of shape 1,1 on 2 nodes" in text


@pytest.fixture
def busy_endpoint() -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def refused(warm: Warm, run_dir: Path, *words: str) -> tuple[int, str]:
    """Exit code and message of a run that must not start; nothing of it may be left."""
    options = ["--devices=cpu", "--slots=4", TINY, f"--run-dir={run_dir}"]
    done = warm.run([BUNDLERUN, "run", *options, *words], timeout=LIMIT_S)
    assert not run_dir.exists()
    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.returncode, done.stderr


def test_a_port_that_something_else_uses_is_refused(
    warm: Warm, tmp_path: Path, busy_endpoint: str
) -> None:
    code, message = refused(warm, tmp_path / "run", f"--rdzv-endpoint={busy_endpoint}", "synthetic")
    assert code == 3
    assert f"cannot listen at --rdzv-endpoint {busy_endpoint}: address already in use" in message


def test_data_without_val_is_refused(warm: Warm, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train" / "a").mkdir(parents=True)
    (data / "train" / "a" / "0.png").touch()
    code, message = refused(warm, tmp_path / "run", str(data))
    assert code == 2
    assert "val" in message


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--cut=firts"], "firts"), (["--shape=1,1,1,1", "--cut=a,b,c"], "cut")],
)
def test_a_cut_that_the_model_does_not_have_is_refused(
    warm: Warm, tmp_path: Path, words: list[str], message: str
) -> None:
    code, text = refused(warm, tmp_path / "run", *words, "synthetic")
    assert code == 2
    assert message in text


def test_a_run_folder_that_cannot_be_made_is_refused(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, message = refused(warm, tmp_path / "file" / "run", "synthetic")
    assert code == 3
    assert "is a file; give a folder" in message
