import io
import json
import os
from pathlib import Path

from launcher import entry
from launcher.elastic import first_story, set_environment, without_entry
from launcher.entry import Tee
from launcher.hardware import Devices
from launcher.network import LOOPBACK, Meeting
from launcher.plan import NodePlan


def test_text_goes_to_console_and_log_but_a_progress_bar_only_to_the_console() -> None:
    console, log = io.StringIO(), io.StringIO()
    tee = Tee(console, log)
    assert tee.write("a line\n") == 7
    tee.write("\r 50 %")
    assert (console.getvalue(), log.getvalue()) == ("a line\n\r 50 %", "a line\n")


def test_a_worker_still_sees_its_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    assert Tee(Terminal(), io.StringIO()).isatty()


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


def test_a_failure_without_a_file_keeps_its_code(tmp_path: Path) -> None:
    assert first_story(Path("<N/A>"), 2, 5) == (2, 5, "")
    assert first_story(tmp_path / "1" / "error.json", 1, 6) == (1, 6, "")


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


def test_a_variable_that_lost_against_an_option_does_not_reach_the_workers() -> None:
    node = NodePlan(
        name="n",
        devices=Devices(kind="cpu", count=1),
        layouts=(),
        meeting=Meeting(address=LOOPBACK, port=0, is_here=True, local_addr=LOOPBACK),
        log_dir="",
        environment={"OMP_NUM_THREADS": "1"},
    )
    environ = {"BUNDLERUN_LR": "9", "BUNDLERUN_NODE_NAME": "n", "HOME": "/root"}
    set_environment(environ, node)
    assert environ == {"BUNDLERUN_NODE_NAME": "n", "HOME": "/root", "OMP_NUM_THREADS": "1"}
