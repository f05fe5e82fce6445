from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bundlerun.launcher.errors import ConfigError
from bundlerun.workers.model.forward_state import ForwardState
from bundlerun.workers.values.module_tensors import tensor_places

Write = Callable[[nn.Module, Tensor], None]


class Writer(nn.Module):
    """Writes to its state as `write` says; returns what a model would."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self.state: Tensor
        self.cache: Tensor
        self.weight = nn.Parameter(torch.ones(2))
        self.register_buffer("state", torch.zeros(2))
        self.register_buffer("cache", torch.zeros(0), persistent=False)
        self.table = nn.Embedding(3, 2, max_norm=1.0)
        nn.init.constant_(self.table.weight, 3.0)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self, x)
        return x * self.weight


def add(module: nn.Module, x: Tensor) -> None:
    module.get_buffer("state").add_(x)


def add_unseen(module: nn.Module, x: Tensor) -> None:
    module.get_buffer("state").data.add_(x)


def replace(module: nn.Module, x: Tensor) -> None:
    module.state = module.get_buffer("state") + x


def replace_data(module: nn.Module, x: Tensor) -> None:
    module.get_buffer("state").data = module.get_buffer("state") + x


def nobody(values: Tensor) -> Tensor:
    raise AssertionError("nothing was to be summed")


def step(state: ForwardState, forward: Callable[..., object], inputs: list[float]) -> int:
    """The forwards of one step of one replica; what it has found."""
    state.begin_step()
    for value in inputs:
        forward(torch.full((2,), value))
    return state.count_found()


@pytest.mark.parametrize("write", [add, add_unseen, replace, replace_data])
@pytest.mark.parametrize("num_replicas", [1, 2, 3])
def test_a_step_keeps_what_its_first_microbatch_wrote_on_every_replica(
    write: Write, num_replicas: int
) -> None:
    shares = {1: [[1, 2, 4]], 2: [[1, 2], [4]], 3: [[1, 2, 4], [], []]}[num_replicas]
    meeting = Meeting(num_replicas)
    states: list[list[float]] = [[] for _ in shares]

    def replica(rank: int) -> None:
        module = Writer(write)
        state = ForwardState(module, 1, meeting.all_sum)
        forward = state.watched(0, module)
        for _ in range(2):
            num_found = step(state, forward, [float(v) for v in shares[rank]])
            found = float(meeting.all_sum(torch.tensor([float(num_found)]).double()))
            state.settle(found, is_first=rank == 0)
        states[rank] = module.state.tolist()

    meeting.run(replica)
    assert states == [[2.0, 2.0]] * num_replicas


def test_each_forward_of_a_step_sees_the_same_state() -> None:
    seen = []

    def write(module: nn.Module, x: Tensor) -> None:
        seen.append(module.get_buffer("state")[0].item())
        add(module, x)

    module = Writer(write)
    state = ForwardState(module, 1, lambda values: values)
    forward = state.watched(0, module)
    for _ in range(2):
        state.settle(step(state, forward, [1.0, 2.0, 3.0]), is_first=True)
    assert seen == [0, 0, 0, 1, 1, 1]


def test_an_embedding_with_a_largest_norm_begins_each_forward_unscaled() -> None:
    seen = []

    def write(module: nn.Module, x: Tensor) -> None:
        table = module.get_submodule("table")
        seen.append(table.weight[int(x[0])].norm().item())
        table(torch.tensor([int(x[0])]))

    module = Writer(write)
    state = ForwardState(module, 1, lambda values: values)
    state.settle(step(state, state.watched(0, module), [0.0, 1.0, 0.0]), is_first=True)
    assert seen == pytest.approx([18**0.5] * 3)
    assert module.table.weight.norm(dim=1).tolist() == pytest.approx([1.0, 18**0.5, 18**0.5])


def test_what_a_forward_writes_to_a_parameter_comes_before_the_optimizer() -> None:
    module = Writer(lambda module, x: None)
    state = ForwardState(module, 1, lambda numbers: numbers)
    state.begin_step()
    assert not state.writes_parameters
    with torch.no_grad():
        state.watched(0, lambda x: module.weight.clamp_(max=0.5))(torch.ones(2))
    found = state.count_found()
    assert found == 1
    assert state.writes_parameters
    state.settle(found, is_first=True)
    state.begin_step()
    assert state.writes_parameters, "as it has before"


@pytest.mark.parametrize("name", ["weight", "state"])
def test_another_replicas_first_write_to_a_parameter_is_refused_after_the_optimizer(
    name: str,
) -> None:
    module = Writer(lambda module, x: None)
    names = [place.name for place in tensor_places(module)]

    def all_sum(numbers: Tensor) -> Tensor:
        # First of all what was found is summed.
        if len(numbers) != len(names):
            return numbers
        return numbers + torch.tensor([float(each == name) for each in names])

    state = ForwardState(module, 1, all_sum)
    state.begin_step()
    assert state.count_found() == 0
    if name == "state":  # no optimizer changes it
        state.settle(1.0, is_first=True, has_stepped=True)
        return
    with pytest.raises(RuntimeError, match="another start does this step again"):
        state.settle(1.0, is_first=True, has_stepped=True)


def test_a_forward_that_writes_nothing_costs_no_sum() -> None:
    module = Writer(lambda module, x: None)
    state = ForwardState(module, 1, nobody)
    for _ in range(2):
        assert step(state, state.watched(0, module), [1.0, 2.0]) == 0
        state.settle(0.0, is_first=True)


def test_what_only_a_later_microbatch_writes_is_noticed() -> None:
    module = Writer(lambda module, x: add(module, x) if x[0] > 1 else None)
    state = ForwardState(module, 1, lambda values: values)
    assert step(state, state.watched(0, module), [1.0, 2.0]) == 1


def add_late(module: nn.Module, x: Tensor) -> None:
    if x[0] > 1:
        add(module, x)


def replace_late(module: nn.Module, x: Tensor) -> None:
    if x[0] > 1:
        replace(module, x)


@pytest.mark.parametrize("write", [add_late, replace_late])
@pytest.mark.parametrize("shares", [[[1, 2, 4]], [[1, 2], [4]], [[1], [2], [4]]])
def test_what_only_later_microbatches_write_is_taken_back_on_every_replica(
    write: Write, shares: list[list[float]]
) -> None:
    meeting = Meeting(len(shares))
    seen: list[float] = []
    states: list[list[float]] = [[] for _ in shares]

    def observed(module: nn.Module, x: Tensor) -> None:
        seen.append(module.get_buffer("state")[0].item())
        write(module, x)

    def replica(rank: int) -> None:
        module = Writer(observed)
        state = ForwardState(module, 1, meeting.all_sum)
        forward = state.watched(0, module)
        for _ in range(2):
            found = torch.tensor([float(step(state, forward, shares[rank]))]).double()
            state.settle(float(meeting.all_sum(found)), is_first=rank == 0)
        states[rank] = module.state.tolist()

    meeting.run(replica)
    assert states == [[0.0, 0.0]] * len(shares)
    assert set(seen) == {0.0}


@pytest.mark.parametrize("write", [add, add_unseen, replace, replace_data])
def test_a_validation_that_is_broken_off_leaves_the_state_it_began_with(write: Write) -> None:
    module = Writer(lambda module, x: None if torch.is_grad_enabled() else write(module, x))
    state = ForwardState(module, 1, nobody)
    forward = state.watched(0, module)
    assert step(state, forward, [1.0, 2.0]) == 0
    with torch.no_grad():
        step(state, forward, [1.0, 2.0])
    state.undo()
    assert module.state.tolist() == [0.0, 0.0]


def test_a_buffer_made_in_inference_mode_is_refused_by_name() -> None:
    def write(module: nn.Module, x: Tensor) -> None:
        with torch.inference_mode():
            module.state = module.get_buffer("state") + 1

    state = ForwardState(module := Writer(write), 1, nobody)
    with pytest.raises(ConfigError, match=r"makes 'state' under torch.inference_mode"):
        step(state, state.watched(0, module), [1.0])


def test_a_cache_that_grows_is_nobodys_business() -> None:
    def write(module: nn.Module, x: Tensor) -> None:
        module.cache = torch.zeros(len(module.get_buffer("cache")) + 1)

    module = Writer(write)
    state = ForwardState(module, 1, nobody)
    for _ in range(2):
        assert step(state, state.watched(0, module), [1.0, 2.0]) == 0
        state.settle(0.0, is_first=True)


def test_kept_state_of_another_shape_is_refused_by_name() -> None:
    def write(module: nn.Module, x: Tensor) -> None:
        module.state = torch.zeros(3)

    state = ForwardState(module := Writer(write), 1, nobody)
    with pytest.raises(ConfigError, match=r"makes 'state' another shape .*2 float32, then 3 float"):
        step(state, state.watched(0, module), [1.0])


def test_the_chunk_that_writes_a_tensor_decides_what_is_kept() -> None:
    module = Writer(add)
    state = ForwardState(module, 2, lambda values: values)
    first = state.watched(0, lambda x: x)
    second = state.watched(1, module)
    for total in (1.0, 2.0):
        state.begin_step()
        for value in (1.0, 5.0):
            second(torch.full((2,), value))
            first(torch.zeros(2))
        state.settle(state.count_found(), is_first=True)
        assert module.state.tolist() == [total, total]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.bfloat16])
def test_any_dtype_comes_to_the_other_replicas_unchanged(dtype: torch.dtype) -> None:
    value = torch.tensor([1.0, 0.0]).to(dtype) * (1 + 2j if dtype.is_complex else 1)
    meeting = Meeting(2)
    found = {}

    def replica(rank: int) -> None:
        module = Writer(lambda module, x: module.get_buffer("state").copy_(value))
        module.state = torch.zeros(2, dtype=dtype)
        state = ForwardState(module, 1, meeting.all_sum)
        step(state, state.watched(0, module), [1.0] if rank == 0 else [])
        state.settle(1.0, is_first=rank == 0)
        found[rank] = module.state

    meeting.run(replica)
    assert torch.equal(found[1], value)
    assert found[1].dtype == dtype


class Meeting:
    """Threads that stand for replicas, and their sums."""

    def __init__(self, num_replicas: int) -> None:
        self._barrier = threading.Barrier(num_replicas, timeout=20)
        self._values: list[Tensor] = []
        self._lock = threading.Lock()

    def all_sum(self, values: Tensor) -> Tensor:
        with self._lock:
            self._values.append(values)
        self._barrier.wait()
        total = torch.stack(self._values).sum(0)
        if self._barrier.wait() == 0:
            self._values.clear()
        self._barrier.wait()
        return total

    def run(self, replica: Callable[[int], None]) -> None:
        errors: list[BaseException] = []

        def guarded(rank: int) -> None:
            try:
                replica(rank)
            except BaseException as exc:
                errors.append(exc)
                self._barrier.abort()

        threads = [
            threading.Thread(target=guarded, args=(rank,)) for rank in range(self._barrier.parties)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
