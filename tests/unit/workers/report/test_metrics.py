import json
import logging
import math
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch

from bundlerun.launcher.errors import ConfigError
from bundlerun.launcher.run_folder.paths import RunPaths
from bundlerun.workers.report.metrics import MetricsWriter, plain


def lines_of(paths: RunPaths) -> list[dict[str, object]]:
    def refuse(text: str) -> None:
        raise AssertionError(f"{text} is not JSON")

    text = paths.metrics.read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "a run")


@contextmanager
def no_file_beyond(size_bytes: int) -> Iterator[None]:
    """No file of this process can grow further; no fixture, as pytest writes files too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_line_can_be_read_as_soon_as_it_is_written(paths: RunPaths) -> None:
    with MetricsWriter(paths, clock=lambda: 12.5) as writer:
        writer.write("step", step=3, loss=torch.tensor(0.5), seconds={"forward": 0.1})

        assert lines_of(paths) == [
            {"time": 12.5, "kind": "step", "step": 3, "loss": 0.5, "seconds": {"forward": 0.1}}
        ]


def test_what_is_no_finite_number_stays_valid_json(paths: RunPaths) -> None:
    with MetricsWriter(paths) as writer:
        writer.write("step", step=1, loss=math.nan, norms=[math.inf, -math.inf], path=Path("x"))

    line = lines_of(paths)[0]
    assert (line["loss"], line["norms"], line["path"]) == ("nan", ["inf", "-inf"], "x")


def test_a_restart_appends_and_starts_a_line_of_its_own_after_a_torn_one(paths: RunPaths) -> None:
    with MetricsWriter(paths) as writer:
        writer.write("step", step=1)
    with paths.metrics.open("a") as file:
        file.write('{"kind": "st')

    with MetricsWriter(paths) as writer:
        writer.write("step", step=2)

    lines = paths.metrics.read_text().splitlines()
    assert lines[1] == '{"kind": "st'
    assert [json.loads(line)["step"] for line in (lines[0], lines[2])] == [1, 2]


def test_a_full_disk_is_said_once_and_the_lines_wait_for_room(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    with MetricsWriter(paths) as writer:
        with no_file_beyond(200):
            for step in range(20):
                writer.write("step", step=step)
        full = paths.metrics.read_bytes()
        writer.write("end", step=20)

    assert len(full) == 200
    whole = []
    for line in paths.metrics.read_text().splitlines():
        with suppress(ValueError):  # one was cut short, and is there once more
            whole.append(json.loads(line))
    assert [line["step"] for line in whole] == list(range(21))
    assert whole[-1]["kind"] == "end"
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "training goes on" in warnings[0].getMessage()


def test_what_never_finds_room_is_said_at_the_end(
    paths: RunPaths, caplog: pytest.LogCaptureFixture
) -> None:
    with no_file_beyond(200), MetricsWriter(paths) as writer:
        for step in range(20):
            writer.write("step", step=step)
    assert "lines of" in caplog.text
    assert "are lost: File too large" in caplog.text


def test_a_run_folder_that_cannot_be_made_is_a_configuration_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"--run-dir .*file.*; give a folder"):
        MetricsWriter(RunPaths(tmp_path / "file" / "run"))


def test_nested_values_become_plain_ones() -> None:
    assert plain({1: (torch.tensor(2), None, True)}) == {"1": [2, None, True]}


def kinds_and_steps(paths: RunPaths) -> list[tuple[object, object]]:
    return [(line["kind"], line.get("step")) for line in lines_of(paths)]


@pytest.mark.parametrize("with_ends", [True, False])
def test_what_is_done_again_is_taken_out_of_the_history(paths: RunPaths, with_ends: bool) -> None:
    with MetricsWriter(paths) as writer:
        writer.write("start", nodes=2)
        for step in range(6):
            writer.write("step", step=step)
            if step in (2, 5):
                writer.write("epoch", step=step + 1)
                writer.write("eval", step=step + 1)
        writer.write("start", nodes=1)

        writer.forget(3, with_ends=with_ends)
        writer.write("restart", step=3)

    end_of_epoch = [] if with_ends else [("epoch", 3), ("eval", 3)]
    assert kinds_and_steps(paths) == [
        ("start", None),
        *[("step", step) for step in range(3)],
        *end_of_epoch,
        ("start", None),
        ("restart", 3),
    ]


def test_a_long_history_is_only_read_from_its_end(paths: RunPaths) -> None:
    with MetricsWriter(paths) as writer:
        for step in range(6000):
            writer.write("step", step=step, text="x" * 20)
    with paths.metrics.open("a") as file:
        file.write('{"kind": "step", "step": 60')
    before = paths.metrics.read_bytes()

    with MetricsWriter(paths) as writer:
        writer.write("start")
        writer.forget(3000, with_ends=True)

    lines = paths.metrics.read_text().splitlines()
    assert len(lines) == 3002
    assert json.loads(lines[2999])["step"] == 2999
    assert lines[3000] == '{"kind": "step", "step": 60'
    assert before.startswith(paths.metrics.read_bytes()[: before.index(b'"step": 3000,') - 60])


def test_a_run_that_begins_anew_forgets_all_steps(paths: RunPaths) -> None:
    with MetricsWriter(paths) as writer:
        writer.forget(0, with_ends=True)
        writer.write("step", step=0)
        writer.write("epoch", step=1)
        writer.forget(0, with_ends=True)
    assert kinds_and_steps(paths) == []


def step_row(number: int) -> dict[str, object]:
    return {"step": number, "epoch": 0, "loss": float(number)}


def steps_in(paths: RunPaths) -> list[int]:
    rows = map(json.loads, paths.metrics.read_text().splitlines())
    return [row["step"] for row in rows if row["kind"] == "step"]


def test_a_step_is_in_the_history_once_whatever_was_kept_back_and_whoever_died(
    tmp_path: Path,
) -> None:
    """Killed with n lines released and another held; the state has all steps below `whole`."""
    for released, is_held, whole in [
        (3, True, 3), (3, True, 4), (3, True, 5), (3, False, 3), (3, False, 4),
        (0, True, 1), (0, True, 2),
    ]:  # fmt: skip
        paths = RunPaths(tmp_path / f"{released}{is_held}{whole}")
        writer = MetricsWriter(paths)
        for number in range(released):
            writer.hold("step", **step_row(number))
            writer.release()
        if is_held:
            writer.hold("step", **step_row(released))
        again = MetricsWriter(paths)
        again.forget(whole, with_ends=True, last=step_row(whole - 1))
        assert steps_in(paths) == list(range(whole)), (released, is_held, whole)
        again.forget(whole, with_ends=True, last=step_row(whole - 1))
        assert steps_in(paths) == list(range(whole))


def test_a_line_that_is_kept_back_and_undone_stays_out(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    writer = MetricsWriter(paths)
    for number in range(4):
        writer.hold("step", **step_row(number))
        writer.release()
    writer.hold("step", **step_row(4))
    again = MetricsWriter(paths)
    again.forget(2, with_ends=True, last={})
    again.hold("step", **step_row(2))
    again.release()
    assert steps_in(paths) == [0, 1, 2]
