"""A helper does things in order, and after a failure nothing more."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
import torch

from bundlerun.workers.pipeline.helper import Helper

LIMIT_S = 10.0


def helper() -> Helper:
    return Helper("helper", torch.device("cpu"))


def test_things_are_done_in_order_in_a_thread_that_does_not_keep_the_process() -> None:
    asked = helper()
    done: list[int] = []
    answers = [
        asked.add(lambda n=n: done.append(n) or threading.current_thread()) for n in range(9)
    ]
    threads = {answer.result(LIMIT_S) for answer in answers}
    assert done == list(range(9))
    assert len(threads) == 1
    assert threads.pop().daemon


def test_after_a_failure_nothing_more_is_tried() -> None:
    asked = helper()
    done: list[int] = []
    asked.add(lambda: done.append(1))
    failed = asked.add(lambda: 1 // 0)
    later = asked.add(lambda: done.append(2))
    for answer in (failed, later):
        with pytest.raises(ZeroDivisionError):
            answer.result(LIMIT_S)
    assert done == [1]


def test_what_a_thing_needed_is_let_go_once_it_is_done() -> None:
    asked = helper()
    tensor = torch.zeros(1)
    gone = weakref.ref(tensor)
    asked.add(lambda tensor=tensor: tensor.numel()).result(LIMIT_S)
    del tensor
    asked.add(lambda: None).result(LIMIT_S)  # the thread has been round once more
    gc.collect()
    assert gone() is None
