"""The next micro-batch is copied beside the work on this one, in order, and once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from bundlerun.workers.data.samples import Batch
from bundlerun.workers.pipeline import ahead
from bundlerun.workers.pipeline.ahead import Ahead

DEVICE = torch.device("cpu")


class Gpu:
    """Stands for the door to a GPU: says what was asked of it, and in which stream."""

    def __init__(self) -> None:
        self.log: list[tuple[str, ...]] = []
        self.stream = "compute"

    def is_gpu(self, device: torch.device) -> bool:
        return True

    @contextmanager
    def on_stream(self, device: torch.device, purpose: str) -> Iterator[None]:
        before, self.stream = self.stream, purpose
        yield
        self.stream = before

    def placed(self, tensor: Tensor, device: torch.device) -> Tensor:
        self.log.append(("copy", str(int(tensor)), self.stream))
        return tensor.clone()

    def mark(self, device: torch.device) -> str:
        self.log.append(("mark", self.stream))
        return f"mark {len(self.log)}"

    def current_stream(self, device: torch.device) -> Gpu:
        return self

    def wait_event(self, event: str) -> None:
        self.log.append(("wait", self.stream))

    def used_by(self, tensor: Tensor, stream: Any) -> None:
        self.log.append(("used", str(int(tensor)), stream.stream))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    monkeypatch.setattr(ahead, "door", made)
    return made


def batches(count: int, taken: list[int]) -> Iterator[Batch]:
    for number in range(count):
        taken.append(number)
        yield Batch((torch.tensor(number),), torch.tensor(100 + number), 0)


def test_the_next_one_is_copied_while_this_one_is_worked_on(gpu: Gpu) -> None:
    taken: list[int] = []
    reader = Ahead(batches(3, taken), DEVICE, takes_target=False)
    assert reader.take().inputs[0] == 0
    gpu.log.clear()
    reader.look()
    assert taken == [0, 1]
    assert gpu.log == [("copy", "1", "data"), ("mark", "data")]
    gpu.log.clear()
    assert reader.take().inputs[0] == 1
    assert gpu.log == [
        ("wait", "compute"),
        ("used", "1", "compute"),
        ("used", "101", "compute"),
    ]


def test_the_target_goes_along_only_where_it_is_wanted(gpu: Gpu) -> None:
    Ahead(batches(1, []), DEVICE, takes_target=True).take()
    assert ("copy", "100", "data") in gpu.log
    gpu.log.clear()
    Ahead(batches(1, []), DEVICE, takes_target=False).take()
    assert ("copy", "100", "data") not in gpu.log


@pytest.mark.parametrize("looks", [True, False])
def test_each_comes_once_and_in_order_and_the_end_is_no_failure(gpu: Gpu, looks: bool) -> None:
    taken: list[int] = []
    reader = Ahead(batches(4, taken), DEVICE, takes_target=True)
    found = []
    for _ in range(4):
        found.append(int(reader.take().inputs[0]))
        if looks:
            reader.look()
            reader.look()  # one ahead, not two
            assert len(taken) == min(4, len(found) + 1)
    assert found == [0, 1, 2, 3]
    with pytest.raises(StopIteration):
        reader.take()


def test_on_the_cpu_nothing_is_read_before_its_turn() -> None:
    taken: list[int] = []
    reader = Ahead(batches(2, taken), DEVICE, takes_target=True)
    batch = reader.take()
    reader.look()
    assert taken == [0]
    assert batch.inputs[0] == 0
