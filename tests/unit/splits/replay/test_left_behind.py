"""What a forward leaves for later: attributes, buffers that it replaces, what is recomputed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import checkpoint as torch_checkpoint
from torch.utils.checkpoint import checkpoint_sequential

from bundlerun.launcher.choices import Cutter
from bundlerun.launcher.errors import ConfigError
from bundlerun.splits.models import cuttable
from bundlerun.splits.replay.look import look
from bundlerun.splits.replay.model import ReplayedModel
from bundlerun.workers.model.trial import Subject
from tests.unit.splits.replay.chain import (
    Layers,
    assert_same,
    checkpointed,
    example,
    layers,
    subject_of,
)


class Remembers(Layers):
    """Uses what it has kept of its last call."""

    def __init__(self, what: str) -> None:
        super().__init__(lambda m, x: x)
        self.bank = torch.zeros(1, 4).double()
        self.what = what
        self.num_calls = 0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        y = self.first(x)
        made: Tensor = self.third(self.second(y)) + self.bank + self.num_calls
        self.bank = (y if self.what == "first" else made).detach().mean(0, keepdim=True)
        return made


def test_the_check_leaves_no_attribute_of_the_model_itself_behind() -> None:
    subject = subject_of(Remembers("last"), (example(),), ("second",))
    assert_same(subject, (example(),))
    for stage in subject.stages:
        assert vars(stage)["replica"].num_calls == 0
        assert not vars(stage)["replica"].bank.any()


def test_a_tensor_that_an_earlier_call_has_left_with_another_stage_is_told_with_its_line() -> None:
    class Late(Remembers):
        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            mean = y.detach().mean(0, keepdim=True)
            made: Tensor = self.third(self.second(y) + self.bank)
            self.bank = mean
            return made

    front, rear = subject_of(Late("first"), (example(),), ("second",)).stages
    rear(*front(example()))
    with pytest.raises(ConfigError, match=r"kept a tensor of an earlier call.*behind\.py:\d+"):
        rear(*front(example()))


def test_a_buffer_that_is_replaced_behind_the_cut_and_read_before_it_is_refused() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x if m.training else x - m.mean)
        z = m.second(y)
        if m.training:
            m.mean = z.detach().mean(0)
        made: Tensor = m.third(z)
        return made

    model = layers(forward)
    model.register_buffer("mean", torch.zeros(4).double())
    with pytest.raises(ConfigError, match="'second' puts mean into two stages"):
        ReplayedModel(model, (example(),)).cut(["second"])
    subject = subject_of(model, (example(),), ("third",))
    assert next(iter(subject.stages[0].state_dict())) == "mean"
    assert_same(subject, (example(),))


def test_no_cut_is_inside_of_what_is_recomputed_in_the_backward() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        both = nn.Sequential(m.second, nn.Tanh(), m.third)
        return checkpointed(both, m.first(x))  # type: ignore[arg-type]

    with pytest.raises(ConfigError, match=r"'third' is inside a call of torch\.utils\.checkpoint"):
        subject_of(layers(forward), (example(),), ("third",))
    assert_same(subject_of(layers(forward), (example(),), ("second",)), (example(),))


def test_each_segment_of_what_is_recomputed_may_begin_a_stage() -> None:
    def forward(m: Layers, x: Tensor) -> Any:
        parts = [m.first, nn.Tanh(), m.second, m.third]
        return checkpoint_sequential(parts, 2, x, use_reentrant=False)

    names = ReplayedModel(layers(forward), (example(),)).names
    assert "second" in names
    assert "third" not in names
    assert_same(subject_of(layers(forward), (example(),), ("second",)), (example(),))


class Keeps(torch.autograd.Function):
    """What torch 2.11 applies to keep what a checkpointed function is given."""

    @staticmethod
    def forward(*args: Any) -> Tensor:
        return torch.empty((0,))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)


_AS_BEFORE = """
def save_inputs(self, *args):
    self.keeper = Keeps.apply(torch.empty((0,), requires_grad=True), *args)

def get_inputs(self):
    return self.keeper.grad_fn.saved_tensors[1:]
"""


def test_calls_by_which_torch_keeps_what_is_recomputed_are_none_of_the_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    frame = torch_checkpoint._CheckpointFrame
    if hasattr(frame, "save_inputs"):  # else this torch does it itself
        made: dict[str, Any] = {"torch": torch, "Keeps": Keeps}
        exec(compile(_AS_BEFORE, torch_checkpoint.__file__, "exec"), made)
        monkeypatch.setattr(frame, "save_inputs", made["save_inputs"])
        monkeypatch.setattr(frame, "get_inputs", made["get_inputs"])
        monkeypatch.setattr("bundlerun.splits.replay.composite.KEEPS_INPUTS", Keeps)

    def forward(m: Layers, x: Tensor) -> Tensor:
        y = checkpointed(m.first, x)
        # The first call in here is of the same function as one of torch's.
        fills: Any = lambda a: m.second(torch.empty((3, 4), dtype=torch.double).copy_(a))  # noqa: E731
        return checkpointed(m.third, checkpointed(fills, y))

    names = ReplayedModel(layers(forward), (example(),)).names
    assert "third" in names
    assert "second" not in names
    assert_same(subject_of(layers(forward), (example(),), ("third",)), (example(),))


def test_a_dry_run_that_ends_inside_of_what_is_recomputed_holds_no_frame_of_it() -> None:
    # With the frames of torch 2.11 stay the hooks of its checkpoint, for whatever follows.
    held: list[weakref.ref[object]] = []

    def forward(m: Layers, x: Tensor) -> Tensor:
        here = nn.Identity()
        held.append(weakref.ref(here))
        return checkpointed(m.second, here(m.first(x)))

    gc.disable()
    try:
        look(layers(forward), (example(),), torch.device("cpu"), until="second")
        assert held[0]() is None
        assert torch._C._autograd._top_saved_tensors_default_hooks(True) is None
    finally:
        gc.enable()


def test_a_forward_that_leaves_the_next_stage_out_for_fewer_samples_is_told() -> None:
    def forward(m: Layers, x: Tensor) -> Tensor:
        y = m.first(x)
        made: Tensor = m.third(m.second(y) if len(x) > 1 else y)
        return made

    subject = subject_of(layers(forward), (example(),), ("second",))
    with pytest.raises(ConfigError, match="'linear' where it entered the next stage"):
        subject.stages[0](example(1))


@pytest.mark.parametrize("cutter", ["graph", "replay"])
@pytest.mark.parametrize("name", ["code", "graph", "costs", "replica"])
def test_modules_may_have_the_names_that_ours_have(name: str, cutter: Cutter) -> None:
    model = nn.Sequential()
    for each in ("before", name, "behind"):
        model.add_module(each, nn.Linear(4, 4))
    model.double()
    stages = cuttable(model, cutter, (example(),)).cut([name])
    assert_same(Subject(whole=model, stages=stages), (example(),))
