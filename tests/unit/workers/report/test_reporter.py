"""What the console says of a run, on a terminal and in a log."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from pathlib import Path

import pytest

from bundlerun.launcher.config import TrainConfig
from bundlerun.launcher.console import ConsoleHandler
from bundlerun.launcher.layout.shape import Shape
from bundlerun.launcher.layout.topology import Topology
from bundlerun.launcher.report.status_text import status_lines
from bundlerun.launcher.run_folder.checkpoints import Progress
from bundlerun.launcher.run_folder.history import read_rows
from bundlerun.launcher.run_folder.outcome import Outcome, State
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import status_of
from bundlerun.launcher.terminal import Terminal
from bundlerun.workers.report.measures import Gpus, Shared
from bundlerun.workers.report.reporter import Reporter
from bundlerun.workers.report.reporter import log as reporter_log
from bundlerun.workers.report.words import Course
from bundlerun.workers.step import StepSums

SHARED = Shared(num_unreadable=0, busy_s=(), phases={})


class Screen(io.StringIO):
    """What a terminal was sent."""

    def isatty(self) -> bool:
        return True


def run(
    tmp_path: Path, *, max_steps: int = 0, is_stopped: bool = False, shared: Shared = SHARED
) -> None:
    """Two epochs of three steps, or as many of them."""
    config = TrainConfig(
        data="x", run_dir=str(tmp_path), epochs=2, max_steps=max_steps, log_steps=100
    )
    course = Course.of(config, 3, "images", ("top1",))
    with Reporter(config, Topology(Shape((1,)), (1,)), course) as reporter:
        for epoch in range(2):
            reporter.start_epoch(epoch, 0)
            for step in range(3 * epoch, 3 * epoch + course.steps_in(epoch)):
                row = {
                    "step": step, "epoch": epoch, "loss": 1.0 / (step + 1), "lr": 0.1,
                    "samples": 8, "metrics": {"top1": 0.25},
                }  # fmt: skip
                reporter.step(row)
                reporter_log.warning("a warning of step %d", step)
            if course.steps_in(epoch):
                reporter.end_epoch(epoch, 3 * epoch + 3, shared)
                reporter.validated(epoch, 3 * epoch + 3, StepSums(loss=0.5, metrics={"top1": 0.5}))
        state: State = "stopped" if is_stopped else "done"
        reporter.finish(Outcome(state=state, exit_code=0, reason="", step=max_steps or 6))


def screen(monkeypatch: pytest.MonkeyPatch, *, term: str = "xterm", width: int = 120) -> Screen:
    """A terminal as stderr; not a fixture, as pytest sets stderr anew for the test itself."""
    made = Screen()
    monkeypatch.setattr("sys.stderr", made)
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((width, 24)))
    handler = ConsoleHandler()
    logger = logging.getLogger("bundlerun.workers.report.reporter")
    monkeypatch.setattr(logger, "handlers", [handler])
    monkeypatch.setattr(logger, "level", logging.INFO)
    monkeypatch.setattr(logger, "propagate", False)
    return made


def test_the_bar_says_step_lr_speed_and_time_left_and_no_line_is_glued_to_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = screen(monkeypatch)
    run(tmp_path)
    text = terminal.getvalue()
    assert "epoch 1/2 " in text
    assert "step 3/6, loss 0.3333, lr 0.1, " in text
    assert " images/s, 0:00:0" in text
    for line in text.split("\n"):
        last = line.rpartition("\r")[2]
        assert not ("warning" in last and "%|" in last), line
    assert text.count("\r\x1b[Ka warning of step ") == 6


@pytest.mark.parametrize("width", [20, 40, 70, 80, 200])
def test_the_bar_fits_the_terminal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = screen(monkeypatch, width=width)
    run(tmp_path)
    drawn = re.findall(r"epoch \d/\d +\d+%[^\r\n]*", terminal.getvalue())
    last = [text for text in drawn if text.startswith("epoch 2/2 100%")][-1]
    assert "left" in last or width == 20
    assert max(map(len, drawn)) <= width or width == 20
    assert ("lr 0.1" in last) == (width == 200)


def test_a_terminal_that_cannot_draw_gets_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal = screen(monkeypatch, term="dumb")
    run(tmp_path)
    assert "\r" not in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()
    assert terminal.getvalue().count("\n") >= 6
    assert "%|" not in terminal.getvalue()


@pytest.mark.parametrize(("is_stopped", "max_steps"), [(False, 4), (True, 0)])
def test_the_last_step_is_told_with_its_metrics(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, is_stopped: bool, max_steps: int
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path, max_steps=max_steps, is_stopped=is_stopped)
    (line,) = [each for each in caplog.messages if each.startswith("step ")]
    wanted = "step 4/4  epoch 2/2  loss 0.2500" if max_steps else "step 6/6  epoch 2/2  loss 0.1667"
    assert line.startswith(f"{wanted}  top1 25.00%  lr 0.1  ")


def test_the_summary_calls_nothing_an_accuracy(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.INFO)
    run(tmp_path, max_steps=4)
    assert "done         4 steps of 4, epoch 2 of 2" in caplog.messages
    assert "validation   top1 50.00%  loss 0.5000" in caplog.messages
    assert "accuracy" not in caplog.text


def test_an_epoch_says_what_each_gpu_does_and_holds(tmp_path: Path) -> None:
    gpus = Gpus(count=4, peak_bytes=(7 << 30, 3 << 30))
    run(tmp_path / "gpu", shared=Shared(num_unreadable=0, busy_s=(), phases={}, gpus=gpus))
    run(tmp_path / "cpu")
    on_gpu, on_cpu = (
        [json.loads(line) for line in (tmp_path / kind / "metrics.jsonl").read_text().splitlines()]
        for kind in ("gpu", "cpu")
    )
    row = next(row for row in on_gpu if "samples_per_s" in row)
    assert row["samples_per_s_per_gpu"] == row["samples_per_s"] / 4
    assert row["gpu_peak_bytes"] == {"stage0": 7 << 30, "stage1": 3 << 30}
    assert not any("gpu" in name for row in on_cpu for name in row)


def test_unreadable_samples_of_all_epochs_count(tmp_path: Path) -> None:
    run(tmp_path, shared=Shared(num_unreadable=3, busy_s=(), phases={}))
    assert json.loads(RunPaths(tmp_path).summary.read_text())["num_unreadable"] == 6


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_round_that_all_go_on_in_is_told_after_the_last_step_before_it(
    tmp_path: Path, is_kept: bool
) -> None:
    config = TrainConfig(data="x", run_dir=str(tmp_path), epochs=1, log_steps=100)
    course = Course.of(config, 9, "images", ("top1",))

    def row(step: int) -> dict[str, object]:
        return {
            "step": step, "epoch": 0, "loss": 1.0, "lr": 0.1, "samples": 8, "metrics": {},
        }  # fmt: skip

    def done(step: int) -> None:
        reporter.all_finished()
        reporter.step(row(step), is_kept=is_kept)

    with Reporter(config, Topology(Shape((1,)), (1,)), course) as reporter:
        reporter.start_epoch(0, 0)
        done(0)
        done(1)
        progress = Progress(step=2, epoch=0, step_in_epoch=2, samples_seen=16)
        reporter.moved(Topology(Shape((1,)), (1, 1)), progress)
        reporter.start_epoch(0, 2)
        done(2)
        done(3)
        reporter.all_finished()
    rows = read_rows(RunPaths(tmp_path).metrics)
    found = [(row["kind"], row["bundles" if row["kind"] == "start" else "step"]) for row in rows]
    begun, steps = [("start", 2), ("restart", 2)], [("step", number) for number in range(4)]
    assert found == [("start", 1), *steps[:2], *begun, *steps[2:]]
    assert [row["source"] for row in rows if row["kind"] == "restart"] == ["hand-over"]


@pytest.mark.parametrize(
    ("options", "nodes", "is_told"),
    [
        ({"verify_steps": 10}, (1,), True),
        ({"quarantine": True}, (1,), True),
        ({}, (1,), False),  # nobody has asked
        ({"verify_steps": -1}, (1,), False),
        ({"verify_steps": 10}, (1, 1), False),
    ],
)
def test_that_one_replica_has_nobody_to_compare_with_is_told_where_it_was_asked_for(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    options: dict[str, int],
    nodes: tuple[int, ...],
    is_told: bool,
) -> None:
    config = TrainConfig(data="x", run_dir=str(tmp_path), **options)  # type: ignore[arg-type]
    course = Course.of(config, 9, "images", ("top1",))
    with caplog.at_level(logging.INFO), Reporter(config, Topology(Shape((1,)), nodes), course):
        pass
    assert caplog.text.count("--verify-steps: off, one replica") == is_told
    rows = read_rows(RunPaths(tmp_path).metrics)
    status = status_of(rows, [], None, now=0.0)
    assert status.verify == ("off, one replica" if is_told else "")
    text = "\n".join(status_lines(status, [], Terminal()))
    assert text.count("off, one replica") == is_told
