from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bundlerun.launcher.cli import main
from bundlerun.launcher.report.look import RunLook
from bundlerun.launcher.report.members import members_of
from bundlerun.launcher.report.status_text import status_lines
from bundlerun.launcher.report.watch import watch
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.launcher.run_folder.status import Status, status_of
from bundlerun.launcher.terminal import Terminal
from tests.unit.launcher.report.test_members import EVENTS

LIVE = Terminal(is_live=True, has_colors=True, width=40, height=12)
START = {"time": 99.0, "kind": "start", "shape": "1,1", "steps": 100, "unit": "images"}


def step(number: int, at: float) -> dict[str, Any]:
    row = {"time": at, "kind": "step", "step": number, "epoch": 0, "loss": 1.5, "samples": 64}
    return row | {"metrics": {"top1": 0.25}}


def status(num_steps: int, **changes: Any) -> Status:
    rows = [START, *(step(number, 100.0 + number) for number in range(num_steps))]
    found = status_of(rows, EVENTS, None, checkpoints=[2, 1], now=100.0 + num_steps)
    return replace(found, **changes)


class Stream(io.StringIO):
    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.isatty = lambda: is_terminal  # type: ignore[method-assign]


def show(looks: list[Status], terminal: Terminal, *, ticks: float = 1.0) -> str:
    stream, left = Stream(terminal.is_live), iter(looks)
    times: Iterator[float] = iter(ticks * i for i in range(1000))

    def lines(found: Status, now: Terminal) -> list[str]:
        return status_lines(found, members_of(EVENTS), now, shape="1,1")

    watch(
        lambda: next(left), lines, stream, lambda: terminal,
        every_s=1.0, line_every_s=10.0, sleep=lambda _: None, clock=lambda: next(times),
    )  # fmt: skip
    return stream.getvalue()


def test_a_status_has_speed_course_checkpoints_and_what_happened() -> None:
    text = "\n".join(status_lines(status(5), members_of(EVENTS), Terminal(), shape="1,1"))
    assert "step         5 of 100, epoch 1, loss 1.5000, 0:01:35 left" in text
    assert "speed        64 images/s, 1 s a step" in text
    assert "checkpoints  step 2, step 1" in text
    assert "metrics      top1 0.2500" in text
    assert "a: local rank 3 died: it was killed" in text
    assert "members      b  bundle 0" in text
    assert "\x1b" not in text


def test_a_terminal_is_drawn_over_and_left_as_it_was_whatever_its_size() -> None:
    text = show([status(3), status(4, state="done")], LIVE)
    assert text.startswith("\x1b[?1049h")
    assert text.endswith("\x1b[?25h\x1b[?1049l")
    drawings = text.split("\x1b[H")[1:]
    assert len(drawings) == 2
    for drawing in drawings:
        plain = drawing.partition("\x1b[J")[0].replace("\x1b[K", "")
        for code in ("\x1b[32m", "\x1b[31m", "\x1b[33m", "\x1b[0m"):
            plain = plain.replace(code, "")
        assert len(plain.splitlines()) <= LIVE.height - 1
        assert max(map(len, plain.splitlines())) <= LIVE.width
        assert "more lines" in plain
    assert "\x1b[3" not in show([status(3, state="done")], replace(LIVE, has_colors=False))


def test_ctrl_c_leaves_the_terminal_as_it_was() -> None:
    def interrupted() -> Status:
        raise KeyboardInterrupt

    stream = Stream(True)
    with pytest.raises(KeyboardInterrupt):
        watch(
            interrupted, lambda *_: [], stream, lambda: LIVE,
            every_s=1.0, line_every_s=1.0, sleep=lambda _: None,
        )  # fmt: skip
    assert stream.getvalue().endswith("\x1b[?1049l")


def test_without_a_terminal_there_is_a_line_per_change_and_few_for_steps() -> None:
    # Each look takes four ticks of a second, so that ten seconds pass with every third one.
    looks = [status(n) for n in range(3, 9)]
    looks += [status(8, checkpoints=(8, 2)), status(8, checkpoints=(8, 2), state="failed")]
    text = show(looks, Terminal())
    assert "\x1b" not in text
    lines = [line for line in text.splitlines() if not line.startswith("failure")]
    assert 4 <= len(lines) < len(looks)
    assert "checkpoint 8" in lines[-2]
    assert "failed" in lines[-1]
    assert text.count("it was killed") == 1


@pytest.mark.parametrize(
    ("environ", "is_live", "has_colors"),
    [
        ({"TERM": "xterm"}, True, True),
        ({"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ({"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ({"TERM": "dumb"}, False, False),
        ({}, False, False),
    ],
)
def test_a_terminal_is_used_for_what_it_can(
    environ: dict[str, str], is_live: bool, has_colors: bool
) -> None:
    found = Terminal.of(Stream(True), environ)
    assert (found.is_live, found.has_colors) == (is_live, has_colors)
    assert Terminal.of(Stream(False), environ) == Terminal()


def test_a_look_reads_only_what_is_new_and_all_again_where_lines_were_taken_out(
    tmp_path: Path,
) -> None:
    paths = RunPaths(tmp_path)
    lines = [json.dumps(row) + "\n" for row in (START, *(step(n, 100.0 + n) for n in range(4)))]
    paths.metrics.write_text("".join(lines[:3]) + '{"torn')
    look = RunLook(paths, lambda: 105.0)
    assert look.status().step == 2
    paths.metrics.write_text("".join(lines))
    assert look.status().step == 4
    # A start that does steps again cuts the history; then it grows beyond what it was.
    again = [json.dumps(step(n, 200.0 + n)) + "\n" for n in range(2, 6)]
    paths.metrics.write_text("".join([*lines[:3], *again]))
    assert look.status().step == 6
    assert (look.shape, look.chunks) == ("1,1", 1)
    paths.metrics.unlink()
    assert look.status().state == "not begun"


def test_the_command_ends_with_the_run_and_loads_no_torch(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(START) + "\n")
    end = {"state": "done", "exit_code": 0, "reason": "all", "step": 1, "first_error": None}
    (tmp_path / "outcome.json").write_text(json.dumps(end))
    code = (
        "import sys; from bundlerun.launcher.cli import main;"
        f"code = main(['status', {str(tmp_path)!r}, '--watch']);"
        "sys.exit(code or ('torch' in sys.modules) or ('matplotlib' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1


def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.jsonl").touch()
    assert main(["status", str(tmp_path), "--watch", "--json"]) == 2
    assert main(["status", str(tmp_path), "--every", "nan"]) == 2
    assert "--every nan is not from 0.1 to 3600 seconds" in capsys.readouterr().err
