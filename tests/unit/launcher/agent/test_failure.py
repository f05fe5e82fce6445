import json
import os
import signal
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from bundlerun.launcher.agent import entry
from bundlerun.launcher.agent.failure import explain, first_story, without_entry
from bundlerun.launcher.run_folder.paths import RunPaths


def write_error(folder: Path, local_rank: int, code: int, story: str, *, at_ns: int) -> Path:
    file = folder / str(local_rank) / "error.json"
    file.parent.mkdir(parents=True)
    message = {"message": "x", "errorCode": code, "extraInfo": {"py_callstack": story}}
    file.write_text(json.dumps({"message": message}))
    os.utime(file, ns=(at_ns, at_ns))
    return file


def test_the_earliest_failure_of_the_node_is_the_story(tmp_path: Path) -> None:
    follower = write_error(tmp_path, 0, 1, "lost its peer", at_ns=2_000)
    write_error(tmp_path, 3, 2, "the cause", at_ns=1_000)
    assert first_story(follower, 0, 1) == (3, 2, "the cause")


def test_a_failure_without_a_file_keeps_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_error(tmp_path, 0, 2, "of another run", at_ns=1_000)
    monkeypatch.chdir(tmp_path)
    assert first_story(Path("<N/A>"), 2, 5) == (2, 5, "")
    assert first_story(tmp_path / "none" / "1" / "error.json", 1, 6) == (1, 6, "")


def test_an_unreadable_error_file_is_passed_over(tmp_path: Path) -> None:
    broken = write_error(tmp_path, 0, 1, "", at_ns=1_000)
    broken.write_text("{")
    os.utime(broken, ns=(1_000, 1_000))
    write_error(tmp_path, 1, 3, "whole", at_ns=2_000)
    assert first_story(broken, 0, 1) == (1, 3, "whole")


def test_a_traceback_begins_in_the_workers_module() -> None:
    story = "\n".join(
        [
            "Traceback (most recent call last):",
            '  File "torch/errors.py", line 1, in wrapper',
            "    return f()",
            f'  File "{entry.__file__}", line 2, in _main',
            "    main()",
            '  File "mine.py", line 3, in main',
            "    boom()",
            "ValueError: boom",
        ]
    )
    assert without_entry(story).splitlines() == [
        "Traceback (most recent call last):",
        '  File "mine.py", line 3, in main',
        "    boom()",
        "ValueError: boom",
    ]
    assert without_entry("ValueError: boom") == "ValueError: boom"


def test_a_rank_that_torch_ended_over_nccl_is_explained_with_its_record(tmp_path: Path) -> None:
    record = RunPaths(tmp_path).flight_record("a", 4711)
    record.parent.mkdir(parents=True)
    file = record.with_name(f"{record.name}0")
    file.touch()
    record.with_name("process-47110-0").touch()  # of another process

    def told(pid: int) -> str:
        failure = ProcessFailure(1, pid, -signal.SIGABRT, "")
        error = ChildFailedError("worker", {3: failure})
        text, code = explain(error, node_name="a", num_procs=2, run_dir=str(tmp_path))
        assert code == 1
        return text

    assert str(file) in told(4711)
    assert "--timeout-s" in told(4711)
    assert told(4712).endswith("killed by SIGABRT; the other 1 of this node were stopped")
