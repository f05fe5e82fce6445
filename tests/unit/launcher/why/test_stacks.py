from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.cluster.waiting import comes_true
from bundlerun.launcher.why.stacks import Frame, ask, own_threads, parsed, told_frames, told_place

TEXT = """Thread 0x00007f01 (most recent call first):
  File "/a b/threading.py", line 5 in wait

Current thread 0x00007f02 (most recent call first):
  File "/home/u/data.py", line 41 in __getitem__
  File "<string>", line 1 in <module>
"""
HELD = """
import re
from bundlerun.launcher.why.stacks import register
def holds():
    re.match("(a+)+$", "a" * 60 + "b")
print(register(), flush=True)
holds()
"""


def test_what_faulthandler_writes_is_read_main_thread_first() -> None:
    main, other = parsed(TEXT)
    assert main.frames == (
        Frame("/home/u/data.py", 41, "__getitem__"),
        Frame("<string>", 1, "<module>"),
    )
    assert other.frames == (Frame("/a b/threading.py", 5, "wait"),)


def test_a_process_that_never_gives_its_interpreter_back_tells_its_stacks() -> None:
    with subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            fd = int(program.stdout.readline())
            answers = Path(f"/proc/{program.pid}/fd/{fd}")

            def holds() -> bool:
                (main,) = ask(program.pid, answers, 20.0)
                return "holds" in [frame.function for frame in main.frames]

            assert comes_true(holds, 20.0, 0.01)
            assert holds()  # and again
            assert program.poll() is None
        finally:
            program.kill()


def test_a_process_that_does_not_hear_the_signal_is_left_alone() -> None:
    with subprocess.Popen(["sleep", "100"]) as program:
        try:
            assert ask(program.pid, Path("/proc/self/fd/0")) == []
            assert program.poll() is None
        finally:
            program.kill()
    assert ask(program.pid, Path("/proc/self/fd/0")) == []


def test_the_own_stacks_are_those_of_other_threads() -> None:
    assert all(thread.name for thread in own_threads())


def test_the_users_innermost_call_is_told() -> None:
    import threading

    import bundlerun

    ours = Frame(str(Path(bundlerun.__file__).parent / "workers" / "train.py"), 1, "main")
    library = Frame("/v/site-packages/timm/model.py", 5, "forward")
    torch = Frame("/v/site-packages/torch/nn/modules/module.py", 3, "_call_impl")
    users = Frame("/home/u/recipe.py", 9, "loss")
    python = Frame(threading.__file__, 9, "wait")
    assert told_place([python, torch, library, users, ours]) == users
    assert told_place([torch, library, ours]) == library
    assert told_place([python, torch, ours]) == torch
    assert told_place([python]) == python
    assert told_place([]) is None
    assert told_frames([users, ours, Frame("x", 1, "_bootstrap"), ours]) == [users, ours]
    assert os.sep in ours.file
