from __future__ import annotations

import os
import signal

import pytest

from benchmarks.gpu.forked import Fork, in_fork
from bundlerun.launcher.process import kernel_state


def test_a_fork_answers_with_its_own_environment() -> None:
    answer = in_fork(lambda: [os.environ["CHANGED"], os.getpid()], {"CHANGED": "yes"})
    assert answer[0] == "yes"
    assert answer[1] != os.getpid()
    assert "CHANGED" not in os.environ


def fail() -> None:
    raise ValueError("on purpose")


@pytest.mark.parametrize("main", [fail, signal.pause, lambda: os.kill(os.getpid(), 9)])
def test_a_fork_without_an_answer_is_an_error_and_gone(main: object) -> None:
    fork = Fork(main)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no answer"):
        fork.answer(1.0)
    assert kernel_state(fork.pid) == "X"
    fork.forget()  # once more does nothing


def test_long_answers_come_whole() -> None:
    assert in_fork(lambda: "x" * 1_000_000) == "x" * 1_000_000
